//! A TCP proxy that a test can cut or stop: the bad network between two processes.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A port of its own that leads to another one, for as long as this lives.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    accepting: JoinHandle<()>,
}

/// What the network does at this moment.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// How many times everything was cut.
    cuts: u64,
    /// Whether connections stay open but carry nothing, as behind a dead router.
    paused: bool,
}

impl Proxy {
    /// Listens on a free port of this machine, and leads what comes there to `target`.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for the proxy")?;
        let address = listener.local_addr().context("the proxy has no address")?;
        let (weather, seen) = watch::channel(Weather::default());
        let accepting = tokio::spawn(accept(listener, target, seen));
        Ok(Self { address, weather, accepting })
    }

    /// Says where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections there are. New ones are welcome.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Keeps all connections open, old and new, but carries nothing from now on.
    pub fn pause(&self) {
        self.weather.send_modify(|weather| weather.paused = true);
    }

    /// Carries again, beginning with what was held back.
    pub fn resume(&self) {
        self.weather.send_modify(|weather| weather.paused = false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until aborted, which ends all connections too.
async fn accept(listener: TcpListener, target: SocketAddr, weather: watch::Receiver<Weather>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, target, weather.clone()));
        while connections.try_join_next().is_some() {} // forgets those that have ended
    }
}

/// Carries one connection until an end closes it or it is cut.
async fn carry(client: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let cuts = weather.borrow_and_update().cuts;
    let (there, back) = (weather.clone(), weather.clone());
    let both_ways = async {
        let Ok(server) = TcpStream::connect(target).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = one_way(from_client, to_server, there) => {}
            () = one_way(from_server, to_client, back) => {}
        }
    };
    tokio::select! {
        () = both_ways => {}
        _ = weather.wait_for(|now| now.cuts != cuts) => {}
    }
}

/// Carries bytes in one direction until it ends.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if weather.wait_for(|now| !now.paused).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
