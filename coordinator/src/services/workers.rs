//! The service `Workers`.

use std::sync::Arc;

use proto::v1::{self, workers_server::Workers};
use tonic::{Request, Response, Status};

use crate::{desk::now, roster::Roster};

/// Knows who renders.
#[derive(Debug)]
pub struct WorkersService {
    /// Who was heard of.
    pub roster: Arc<Roster>,
}

#[tonic::async_trait]
impl Workers for WorkersService {
    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let workers = self.roster.present(now()).into_iter().map(|(worker, seen)| worker.to_wire(Some(seen))).collect();
        Ok(Response::new(v1::ListWorkersResponse { workers }))
    }
}
