//! Every adapter keeps the same promises, and S3 keeps them when the line is bad.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::TryStreamExt as _;
use store::{Digester, FolderStore, Key, MemoryStore, S3, Store, StoreError, digest, suite};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_promises() {
    let store = MemoryStore::new();
    suite::run(async || Arc::new(store.clone()) as Arc<dyn Store>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_the_promises() {
    let root = tempfile::tempdir().unwrap();
    suite::run(async || Arc::new(FolderStore::open(root.path()).unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_promises() {
    let Some(test) = S3Under::test() else { return };
    suite::run(async || store::open(&test.url).await.unwrap()).await;
    suite::run(async || store::open(&format!("{}/a/prefix", test.url)).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forbidden_or_absent_is_told_apart() {
    let Some(test) = S3Under::test() else { return };
    let key = Key::new("forbidden/a").unwrap();
    let ours = store::open(&test.url).await.unwrap();
    ours.put(&key, Bytes::from_static(b"secret")).await.unwrap();

    let read = store::s3_object(&format!("{}/{key}", test.url)).await.unwrap();
    assert_eq!(read.size_bytes, 6);
    assert_eq!(read.bytes.try_collect::<Vec<_>>().await.unwrap().concat(), b"secret");
    let absent = format!("{}/no such%20key", test.url);
    match store::s3_object(&absent).await.unwrap_err() {
        StoreError::NotFound { key } => assert_eq!(key, absent),
        error => panic!("an absent key gave {error:?}"),
    }

    let stranger = S3::at(&test.endpoint, &test.access_key, "not the secret key").await;
    let object = stranger.object(&format!("{}/{key}", test.url)).await.unwrap_err();
    let theirs = stranger.store(&test.bucket, "").unwrap();
    let errors = [object, theirs.get(&key).await.unwrap_err(), theirs.head(&key).await.unwrap_err()];
    for error in errors {
        assert!(matches!(error, StoreError::Forbidden { .. }), "{error:?}");
    }
    let nowhere = test.connect(&test.endpoint).await.store("no-such-bucket", "").unwrap();
    let error = nowhere.put(&key, Bytes::new()).await.unwrap_err();
    assert!(matches!(&error, StoreError::MissingBucket { bucket } if bucket == "no-such-bucket"), "{error:?}");
    ours.delete(&key).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_the_connection_was_cut() {
    let Some(test) = S3Under::test() else { return };
    let key = Key::new("cut/a").unwrap();
    let body: Bytes = (0..30_000_000_u32).map(|n| (n % 251) as u8).collect();
    let direct = store::open(&test.url).await.unwrap();
    direct.put(&key, body.clone()).await.unwrap();

    let line = BadLine::to(&test.endpoint, 4_000_000).await;
    let store = test.connect(&line.endpoint).await.store(&test.bucket, "").unwrap();
    let (size_bytes, mut pieces) = store.get_stream(&key).await.unwrap();
    let mut digester = Digester::default();
    while let Some(piece) = pieces.try_next().await.unwrap() {
        digester.update(&piece);
    }
    assert_eq!((size_bytes, digester.finish()), (body.len() as u64, digest(&body)));
    assert!(line.connections.load(Ordering::Relaxed) >= 8, "30 MB need 8 connections of 4 MB");
    let range = store.get_range(&key, 1_000_000..7_000_000).await.unwrap();
    assert!(range == body[1_000_000..7_000_000]);
    direct.delete(&key).await.unwrap();
}

/// The service that the environment names for tests: `TESSERA_TEST_S3=s3://bucket` and `AWS_*`.
struct S3Under {
    url: String,
    bucket: String,
    endpoint: String,
    access_key: String,
    secret_key: String,
}

impl S3Under {
    /// The service, or `None`, said aloud, if there is none.
    fn test() -> Option<Self> {
        let Ok(url) = std::env::var("TESSERA_TEST_S3") else {
            eprintln!("skipped: set TESSERA_TEST_S3=s3://bucket and AWS_* to run this test against a real S3");
            return None;
        };
        let given = |name| std::env::var(name).unwrap_or_else(|_| panic!("TESSERA_TEST_S3 needs {name}"));
        let bucket = url.strip_prefix("s3://").expect("TESSERA_TEST_S3 is s3://bucket").to_owned();
        Some(Self {
            bucket,
            url,
            endpoint: given("AWS_ENDPOINT_URL"),
            access_key: given("AWS_ACCESS_KEY_ID"),
            secret_key: given("AWS_SECRET_ACCESS_KEY"),
        })
    }

    async fn connect(&self, endpoint: &str) -> S3 {
        S3::at(endpoint, &self.access_key, &self.secret_key).await
    }
}

/// A proxy that cuts each connection after so many bytes of answers.
struct BadLine {
    endpoint: String,
    connections: Arc<AtomicU32>,
}

impl BadLine {
    async fn to(endpoint: &str, cut_after: u64) -> Self {
        let target = endpoint.strip_prefix("http://").expect("the test's S3 is plain http").trim_end_matches('/');
        let (target, connections) = (target.to_owned(), Arc::new(AtomicU32::new(0)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let mut server = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(async move {
                    let (mut requests, mut answers) = client.split();
                    let (from_server, mut to_server) = server.split();
                    let mut from_server = from_server.take(cut_after);
                    let forth = tokio::io::copy(&mut requests, &mut to_server);
                    let back = tokio::io::copy(&mut from_server, &mut answers);
                    // Whichever ends first ends both, and drops the connections.
                    tokio::select! { _ = forth => {}, _ = back => {} }
                    let _ = answers.flush().await;
                });
            }
        });
        Self { endpoint, connections }
    }
}
