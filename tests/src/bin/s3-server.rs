//! `s3-server`: a real S3 server on a folder of this machine, for tests and for trying the farm out.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use tests::s3_server;

/// Serves a folder as S3 until it is interrupted.
#[derive(Debug, Parser)]
struct Args {
    /// The folder that holds the buckets; made if it is not there.
    #[arg(long)]
    root: PathBuf,
    /// Where to listen; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// The access key that clients sign with.
    #[arg(long, default_value = "tessera")]
    access_key: String,
    /// The secret key that clients sign with.
    #[arg(long, default_value = "tessera-secret")]
    secret_key: String,
    /// A bucket to make at start.
    #[arg(long, default_value = "tessera")]
    bucket: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { root, listen, access_key, secret_key, bucket } = Args::parse();
    let server = s3_server::start(&root, listen, &access_key, &secret_key).await?;
    server.create_bucket(&bucket)?;
    eprintln!("s3-server: bucket `{bucket}` at {}", server.endpoint());
    server.serve().await;
    Ok(())
}
