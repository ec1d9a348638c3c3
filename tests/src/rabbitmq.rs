//! A private RabbitMQ server for one test: its own ports, folder and name, gone when the test is over.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Where Debian's and Ubuntu's package keeps the server, without the wrapper that changes the user.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// How long a server may take to start or stop.
const LIMIT: Duration = Duration::from_secs(120);

/// A RabbitMQ server that this process owns.
#[derive(Debug)]
pub struct RabbitMq {
    folder: TempDir,
    amqp_port: u16,
    distribution_port: u16,
    epmd_port: u16,
    /// Erlang's name server, which RabbitMQ would otherwise start and leave behind.
    epmd: Child,
    server: Option<Child>,
}

impl RabbitMq {
    /// Says whether there is a server to start on this machine.
    pub fn is_installed() -> bool {
        Path::new(SERVER).exists()
    }

    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// If none is installed, or if it does not come up in two minutes; with the end of its log.
    pub async fn start() -> Result<Self> {
        if !Self::is_installed() {
            bail!("no {SERVER}: install the package rabbitmq-server");
        }
        let folder = TempDir::with_prefix("tessera-rabbitmq-").context("no temporary folder")?;
        fs::write(folder.path().join("plugins"), "[].")?;
        let cookie = folder.path().join(".erlang.cookie");
        fs::write(&cookie, "tessera")?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o600))?;
        let [amqp_port, distribution_port, epmd_port] = free_ports()?;
        let configuration = format!("listeners.tcp.1 = 127.0.0.1:{amqp_port}\n");
        fs::write(folder.path().join("rabbitmq.conf"), configuration)?;
        let epmd = Command::new("epmd")
            .args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("epmd does not start")?;
        let mut this = Self { folder, amqp_port, distribution_port, epmd_port, epmd, server: None };
        this.start_again().await?;
        Ok(this)
    }

    /// The address for `TESSERA_BROKER`.
    pub fn url(&self) -> String {
        self.url_through(self.address())
    }

    /// The address for `TESSERA_BROKER` by way of a proxy.
    pub fn url_through(&self, address: SocketAddr) -> String {
        format!("amqp://guest:guest@{address}/%2f")
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.amqp_port).into()
    }

    /// Starts the server again after [`kill`](Self::kill) or [`stop`](Self::stop), with what it had on disk, and
    /// waits until it answers.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_again(&mut self) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let folder = self.folder.path();
        let log = fs::File::create(folder.join("output.log"))?;
        let server = Command::new(SERVER)
            .env("HOME", folder)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", format!("tessera{}@localhost", self.amqp_port))
            .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0) // the server is several processes, ended together
            .spawn()
            .with_context(|| format!("{SERVER} does not start"))?;
        self.server = Some(server);
        let options = broker::Options {
            name: "waits for the server".into(),
            patience: Duration::from_secs(1),
            ..Default::default()
        };
        let begun = Instant::now();
        loop {
            match broker::open(&self.url(), &options).await {
                Ok(broker) => {
                    broker.close().await;
                    return Ok(());
                }
                Err(error) => {
                    let ended = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten());
                    if ended.is_some() || begun.elapsed() > LIMIT {
                        let log = fs::read_to_string(self.folder.path().join("output.log")).unwrap_or_default();
                        return Err(error).with_context(|| format!("RabbitMQ did not come up ({ended:?}):\n{log}"));
                    }
                }
            }
        }
    }

    /// Stops the server in good order and starts it again.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Stops the server in good order.
    ///
    /// # Errors
    /// If it does not stop in two minutes.
    pub async fn stop(&mut self) -> Result<()> {
        self.end("TERM").await
    }

    /// Ends the server at once, as a power cut would.
    ///
    /// # Errors
    /// If its processes cannot be ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.end("KILL").await
    }

    /// Forgets all queues and messages of a server that does not run, as a lost disk would.
    ///
    /// # Errors
    /// If the files cannot be deleted.
    pub fn lose_everything(&self) -> Result<()> {
        fs::remove_dir_all(self.folder.path().join("mnesia")).context("the server's files stay")
    }

    async fn end(&mut self, signal: &'static str) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let ended = tokio::task::spawn_blocking(move || {
            signal_group(signal, &server)?;
            server.wait().context("the server cannot be waited for")
        });
        tokio::time::timeout(LIMIT, ended).await.context("RabbitMQ does not stop")???;
        Ok(())
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        // What does not work here is already gone.
        if let Some(mut server) = self.server.take() {
            let _ = signal_group("KILL", &server);
            let _ = server.wait();
        }
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}

/// Sends a signal to a server and all processes it started.
fn signal_group(signal: &str, server: &Child) -> Result<()> {
    let group = format!("-{}", server.id());
    let status = Command::new("kill").args(["-s", signal, "--", &group]).stderr(Stdio::null()).status()?;
    if !status.success() {
        bail!("the processes {group} do not take the signal {signal}");
    }
    Ok(())
}

/// Finds ports that nobody uses, all held until all are found.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(TcpListener::bind("127.0.0.1:0").context("no free port")?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
