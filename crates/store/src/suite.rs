//! The suite that every adapter runs: what a [`Store`] promises, as assertions.
//!
//! A test of an adapter is one call of [`run`]. It panics on the first promise that is broken.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use crate::{Digester, Entry, Key, Store, StoreError, digest, put_digested};

const MIB: usize = 1024 * 1024;

/// Runs the suite against the store that `connect` connects to: each call makes a new connection to the same bytes.
///
/// Everything is written below `suite/` and a random name, and deleted at the end.
pub async fn run(connect: impl AsyncFn() -> Arc<dyn Store>) {
    let scope = Scope { store: connect().await, name: format!("suite/{}", uuid::Uuid::new_v4()) };
    let other = connect().await;
    assert!(!scope.store.describe().is_empty());
    scope.store.check().await.expect("a store that works passes its own check");

    what_is_put_is_got(&scope, &*other).await;
    ranges_are_exact(&scope).await;
    large_bodies_stream(&scope).await;
    unfinished_writers_leave_nothing(&scope, &*other).await;
    one_of_many_puts_of_a_key_wins(&scope, &*other).await;
    listings_are_sorted_and_complete(&scope).await;
    digests_make_keys(&scope).await;
    presigned_urls_work(&scope).await;
    errors_say_what_to_do(&scope).await;

    let all = scope.list("").await;
    stream::iter(all).for_each_concurrent(16, async |entry| scope.store.delete(&entry.key).await.unwrap()).await;
    assert_eq!(scope.list("").await, []);
}

/// A store, and the part of it that is this run's.
struct Scope {
    store: Arc<dyn Store>,
    name: String,
}

impl Scope {
    fn key(&self, name: &str) -> Key {
        Key::new(format!("{}/{name}", self.name)).expect("the suite's names are keys")
    }

    async fn list(&self, prefix: &str) -> Vec<Entry> {
        self.store.list(&format!("{}/{prefix}", self.name)).try_collect().await.expect("the store lists")
    }

    /// The names below `prefix`.
    async fn names(&self, prefix: &str) -> Vec<String> {
        let own = format!("{}/", self.name);
        let name =
            |entry: Entry| entry.key.as_str().strip_prefix(&own).expect("a listed key has the prefix").to_owned();
        self.list(prefix).await.into_iter().map(name).collect()
    }
}

async fn what_is_put_is_got(scope: &Scope, other: &dyn Store) {
    let key = scope.key("plain/a");
    for body in [&b""[..], b"x", b"a longer body", b"short"] {
        let before = SystemTime::now() - Duration::from_secs(5); // S3 cuts to seconds, and has a clock of its own
        scope.store.put(&key, Bytes::from_static(body)).await.unwrap();
        assert_eq!(other.get(&key).await.unwrap(), body);
        let (size_bytes, pieces) = other.get_stream(&key).await.unwrap();
        let pieces: Vec<Bytes> = pieces.try_collect().await.unwrap();
        assert_eq!((size_bytes, pieces.concat().as_slice()), (body.len() as u64, body));
        let meta = other.head(&key).await.unwrap().unwrap();
        assert_eq!(meta.size_bytes, body.len() as u64);
        assert!(meta.modified > before, "modified {:?}, but written after {before:?}", meta.modified);
    }
    other.delete(&key).await.unwrap();
    assert_eq!(scope.store.head(&key).await.unwrap(), None);
    scope.store.delete(&key).await.expect("deleting what is not there is no error");
    // Its folder may be used again, also right after its last key went.
    scope.store.put(&key, Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(other.get(&key).await.unwrap(), "again");
}

async fn ranges_are_exact(scope: &Scope) {
    let key = scope.key("ranges/a");
    let body = pattern(100_000, 1);
    scope.store.put(&key, body.clone()).await.unwrap();
    for range in [0..1, 0..100_000, 99_999..100_000, 12_345..67_890, 0..0, 500..500, 100_000..100_000] {
        let got = scope.store.get_range(&key, range.start as u64..range.end as u64).await.unwrap();
        assert!(got == body[range.clone()], "range {range:?} differs");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    for range in [0..100_001, 99_999..100_002, 100_000..100_001, 200_000..200_001, 100_001..100_001, 9..8] {
        let error = scope.store.get_range(&key, range.clone()).await.unwrap_err();
        let StoreError::OutOfRange { start, end, size_bytes, .. } = error else { panic!("{range:?} gave {error:?}") };
        assert_eq!((start..end, size_bytes), (range, 100_000));
    }
}

async fn large_bodies_stream(scope: &Scope) {
    let body = pattern(40 * MIB, 2);
    let wanted = digest(&body);

    let streamed = scope.key("large/streamed");
    let mut writer = scope.store.writer(&streamed).await.unwrap();
    let mut rest = body.clone();
    for size in [1, 7 * MIB, 0, 20 * MIB, 1000].into_iter().chain(std::iter::repeat(MIB + 1)) {
        if rest.is_empty() {
            break;
        }
        writer.write(rest.split_to(size.min(rest.len()))).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), body.len() as u64);

    let file = temp_file(&body);
    let copied = scope.key("large/copied");
    scope.store.put_file(&copied, file.path()).await.unwrap();

    let at_once = scope.key("large/at-once");
    scope.store.put(&at_once, body.clone()).await.unwrap();

    for key in [streamed, copied, at_once] {
        let (size_bytes, mut pieces) = scope.store.get_stream(&key).await.unwrap();
        let mut digester = Digester::default();
        while let Some(piece) = pieces.try_next().await.unwrap() {
            digester.update(&piece);
        }
        assert_eq!((size_bytes, digester.finish()), (body.len() as u64, wanted.clone()), "{key}");
        let part = 16 * MIB; // ranges across the edges of parts
        for range in [part - 3..part + 3, 2 * part - 1..2 * part, 2 * part..40 * MIB] {
            let got = scope.store.get_range(&key, range.start as u64..range.end as u64).await.unwrap();
            assert!(got == body[range], "{key}");
        }
        // A stream may be dropped in the middle.
        let (_, mut pieces) = scope.store.get_stream(&key).await.unwrap();
        pieces.try_next().await.unwrap().expect("a large body has a first piece");
    }

    let empty = scope.key("large/empty");
    let writer = scope.store.writer(&empty).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), 0);
    assert_eq!(scope.store.get(&empty).await.unwrap(), "");
    let one_part = scope.key("large/one-part");
    scope.store.put(&one_part, body.slice(..16 * MIB)).await.unwrap();
    assert!(scope.store.get(&one_part).await.unwrap() == body[..16 * MIB]);
}

async fn unfinished_writers_leave_nothing(scope: &Scope, other: &dyn Store) {
    let kept = scope.key("unfinished/kept");
    scope.store.put(&kept, Bytes::from_static(b"before")).await.unwrap();
    for (key, size) in
        [(scope.key("unfinished/small"), 10), (scope.key("unfinished/large"), 40 * MIB), (kept.clone(), 10)]
    {
        let mut writer = scope.store.writer(&key).await.unwrap();
        writer.write(pattern(size, 3)).await.unwrap();
        assert_eq!(scope.names("unfinished/").await, ["unfinished/kept"], "seen before it was finished");
        drop(writer);
    }
    assert_eq!(scope.names("unfinished/").await, ["unfinished/kept"]);
    assert_eq!(other.get(&kept).await.unwrap(), "before");

    let missing = scope.store.put_file(&kept, std::path::Path::new("/no/such/file")).await.unwrap_err();
    assert!(matches!(missing, StoreError::LocalFile { .. }), "{missing:?}");
    assert_eq!(other.get(&kept).await.unwrap(), "before");
}

async fn one_of_many_puts_of_a_key_wins(scope: &Scope, other: &dyn Store) {
    let key = scope.key("race/a");
    scope.store.put(&key, Bytes::from(vec![0; MIB])).await.unwrap();
    let puts = stream::iter(1..=8_u8).for_each_concurrent(8, async |writer| {
        scope.store.put(&key, Bytes::from(vec![writer; MIB])).await.unwrap();
    });
    let gets = async {
        for _ in 0..20 {
            let body = other.get(&key).await.unwrap();
            assert!(body.len() == MIB && body.iter().all(|byte| *byte == body[0]), "a mixture of bodies was read");
        }
    };
    tokio::join!(puts, gets);
    let last = other.get(&key).await.unwrap();
    assert!((1..=8).contains(&last[0]) && last.iter().all(|byte| *byte == last[0]));
    assert_eq!(scope.names("race/").await, ["race/a"]);
}

async fn listings_are_sorted_and_complete(scope: &Scope) {
    // In the order of bytes: `-` and `.` come before `/`, digits and letters after it.
    let odd = ["list/a-b", "list/a.b", "list/a/b", "list/a/b-c", "list/a0", "list/aA", "list/a_b", "list/ab/c/d/e"];
    let mut all: BTreeSet<String> = (0..1100).map(|n| format!("list/many/{n}")).collect();
    all.extend(odd.map(str::to_owned));
    stream::iter(&all)
        .for_each_concurrent(16, async |name| {
            scope.store.put(&scope.key(name), Bytes::from(name.clone())).await.unwrap()
        })
        .await;

    assert!(scope.names("list/").await.into_iter().eq(all.iter().cloned()), "all keys, in order");
    for prefix in
        ["list/a", "list/a/", "list/a/b", "list/many/10", "list/many/1099", "list/ab", "list/no", "list//", "list/../"]
    {
        let wanted: Vec<_> = all.iter().filter(|name| name.starts_with(prefix)).cloned().collect();
        assert_eq!(scope.names(prefix).await, wanted, "prefix {prefix}");
    }
    let sizes_fit = scope
        .list("list/a")
        .await
        .iter()
        .all(|entry| entry.key.as_str().len() == scope.name.len() + 1 + entry.meta.size_bytes as usize);
    assert!(sizes_fit, "a listing tells the sizes");
    let first = scope.store.list(&format!("{}/list/many/", scope.name)).next().await.unwrap().unwrap();
    assert_eq!(Some(first.meta), scope.store.head(&first.key).await.unwrap());
}

async fn digests_make_keys(scope: &Scope) {
    let body = pattern(300_000, 4);
    let file = temp_file(&body);
    let prefix = format!("{}/by-digest", scope.name);
    let put = put_digested(&*scope.store, &prefix, file.path()).await.unwrap();
    assert_eq!(put, (digest(&body), 300_000));
    let key = scope.key(&format!("by-digest/{}", put.0));
    assert!(scope.store.get(&key).await.unwrap() == body);
    assert_eq!(put_digested(&*scope.store, &prefix, file.path()).await.unwrap(), put);
    assert_eq!(scope.list("by-digest/").await.len(), 1);
}

async fn presigned_urls_work(scope: &Scope) {
    let key = scope.key("presigned/a");
    let valid = Duration::from_secs(60);
    let put = scope.store.presign_put(&key, valid).await.unwrap();
    let get = scope.store.presign_get(&key, valid).await.unwrap();
    assert_eq!(put.is_some(), get.is_some(), "an adapter has both or none");
    let (Some(put), Some(get)) = (put, get) else {
        return;
    };
    if put.starts_with("https:") {
        eprintln!("skipped: this suite fetches presigned URLs without TLS only, and the store's are https");
        return;
    }
    let body = pattern(100_000, 5);
    assert_eq!(http("GET", &get, b"").await.0, 404, "the key is not there yet");
    assert_eq!(http("PUT", &put, &body).await.0, 200);
    assert!(scope.store.get(&key).await.unwrap() == body);
    let (status, got) = http("GET", &get, b"").await;
    assert!(status == 200 && got == body, "status {status}, {} bytes", got.len());
    let forged = get.replace("presigned/a", "ranges/a");
    assert_eq!(http("GET", &forged, b"").await.0, 403, "a URL is good for its own key only");
}

async fn errors_say_what_to_do(scope: &Scope) {
    let absent = scope.key("absent/a");
    let stream = scope.store.get_stream(&absent).await.map(|(size_bytes, _)| size_bytes);
    let errors = [
        scope.store.get(&absent).await.unwrap_err(),
        scope.store.get_range(&absent, 0..1).await.unwrap_err(),
        scope.store.get_range(&absent, 0..0).await.unwrap_err(),
        stream.unwrap_err(),
    ];
    for error in errors {
        assert!(!error.is_retryable());
        let StoreError::NotFound { key } = error else { panic!("an absent key gave {error:?}") };
        assert_eq!(key, absent.as_str());
    }
}

/// Some bytes that look like no others: those of another `seed`, or at another place.
fn pattern(size: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13; // xorshift64
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

fn temp_file(body: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(body).expect("a temporary file can be written");
    file
}

/// Sends one plain HTTP request, as any program could that knows nothing but the URL.
async fn http(method: &str, url: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let url = Url::parse(url).expect("a presigned URL is a URL");
    let host = url.host_str().expect("a presigned URL has a host");
    let port = url.port_or_known_default().expect("http has a port");
    let mut stream = TcpStream::connect((host, port)).await.expect("the store's host answers");
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("the request can be sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the answer can be read");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
    let status = std::str::from_utf8(&answer[9..12]).ok().and_then(|code| code.parse().ok());
    (status.expect("an answer begins with its status"), answer.split_off(end + 4))
}
