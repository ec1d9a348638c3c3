//! A real S3 server in this process, on a folder: for tests, and for trying the farm out on one machine.
//!
//! It speaks the protocol of S3 (signatures, ranges, multipart uploads, presigned URLs), but is no production store: it
//! lists by walking the folder, has no `ListMultipartUploads`, and its conditional writes are not atomic.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::Context as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// A running server. Dropping it ends the server and cuts its connections; its folder stays.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    root: PathBuf,
    task: JoinHandle<()>,
}

/// Starts a server for the folder `root`, made if it is not there, at `address`; port 0 takes a free one. One server a
/// folder. Whoever knows both keys may do everything.
pub async fn start(root: &Path, address: SocketAddr, access_key: &str, secret_key: &str) -> anyhow::Result<S3Server> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let files = FileSystem::new(root).map_err(|e| anyhow::anyhow!("cannot serve {}: {e:?}", root.display()))?;
    let mut service = S3ServiceBuilder::new(Bucketed { files, root: root.to_owned() });
    service.set_auth(SimpleAuth::from_single(access_key, secret_key));
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let task = tokio::spawn(serve(listener, service.build()));
    Ok(S3Server { address, root: root.to_owned(), task })
}

impl S3Server {
    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the server, as `AWS_ENDPOINT_URL` wants it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the bucket `name`; it is no error if it is there.
    pub fn create_bucket(&self, name: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.root.join(name)).with_context(|| format!("cannot make bucket `{name}`"))
    }

    /// Serves until the server fails, which it does not, or the future is dropped.
    pub async fn serve(mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let mut connections = JoinSet::new(); // cut when this future is dropped
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let _ = socket.set_nodelay(true);
        while connections.try_join_next().is_some() {}
        let service = service.clone();
        connections.spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(TokioIo::new(socket), service).await; // the client is gone: so be it
        });
    }
}

/// The file system as S3, with two faults mended that the farm would meet.
struct Bucketed {
    files: FileSystem,
    root: PathBuf,
}

/// Hands these operations on as they are; written as `async_trait` would write it, which does not look into macros.
macro_rules! pass_on {
    ($($operation:ident: $input:ident -> $output:ident,)*) => {
        $(fn $operation<'a, 'f>(
            &'a self,
            request: S3Request<$input>,
        ) -> Pin<Box<dyn Future<Output = S3Result<S3Response<$output>>> + Send + 'f>>
        where
            'a: 'f,
            Self: 'f,
        {
            self.files.$operation(request)
        })*
    };
}

#[async_trait::async_trait]
impl S3 for Bucketed {
    // A bucket that does not exist is an error, not made in passing.
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.must_exist(&request.input.bucket)?;
        self.files.put_object(request).await
    }

    // An upload keeps notes in a file named after its key, whose name grows too long at keys of some 130 bytes.
    async fn create_multipart_upload(
        &self,
        mut request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.must_exist(&request.input.bucket)?;
        let key = request.input.key.clone();
        if key.len() > 100 {
            request.input.key = "long".to_owned(); // the notes, which are empty, are never looked up
        }
        let mut response = self.files.create_multipart_upload(request).await?;
        response.output.key = Some(key);
        Ok(response)
    }

    pass_on! {
        abort_multipart_upload: AbortMultipartUploadInput -> AbortMultipartUploadOutput,
        complete_multipart_upload: CompleteMultipartUploadInput -> CompleteMultipartUploadOutput,
        copy_object: CopyObjectInput -> CopyObjectOutput,
        create_bucket: CreateBucketInput -> CreateBucketOutput,
        delete_bucket: DeleteBucketInput -> DeleteBucketOutput,
        delete_object: DeleteObjectInput -> DeleteObjectOutput,
        delete_objects: DeleteObjectsInput -> DeleteObjectsOutput,
        get_bucket_location: GetBucketLocationInput -> GetBucketLocationOutput,
        get_object: GetObjectInput -> GetObjectOutput,
        head_bucket: HeadBucketInput -> HeadBucketOutput,
        head_object: HeadObjectInput -> HeadObjectOutput,
        list_buckets: ListBucketsInput -> ListBucketsOutput,
        list_objects: ListObjectsInput -> ListObjectsOutput,
        list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output,
        list_parts: ListPartsInput -> ListPartsOutput,
        upload_part: UploadPartInput -> UploadPartOutput,
    }
}

impl Bucketed {
    fn must_exist(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }
}
