//! The service `Models`.

use std::sync::Arc;

use proto::{
    convert::InvalidField,
    v1::{self, models_server::Models},
};
use tonic::{Request, Response, Status};

use crate::{catalog::Catalog, intake::Intake, refusal::Refusal};

/// Knows which networks the farm has.
#[derive(Debug)]
pub struct ModelsService {
    /// The models.
    pub catalog: Arc<Catalog>,
    /// Brings artifacts in.
    pub intake: Arc<Intake>,
}

#[tonic::async_trait]
impl Models for ModelsService {
    async fn list_models(&self, _: Request<v1::ListModelsRequest>) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.catalog.all().await?.iter().map(|record| record.to_wire()).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn get_model(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::GetModelResponse>, Status> {
        let v1::GetModelRequest { model } = request.into_inner();
        let record = self.catalog.find(&model).await?;
        let missing = || Refusal::NotFound { field: "model".to_owned(), what: format!("a model called `{model}`") };
        let model = record.ok_or_else(missing)?.to_wire();
        Ok(Response::new(v1::GetModelResponse { model: Some(model) }))
    }

    async fn add_model(&self, request: Request<v1::AddModelRequest>) -> Result<Response<v1::AddModelResponse>, Status> {
        let v1::AddModelRequest { digest, name } = request.into_inner();
        let digest = digest.parse().map_err(InvalidField::at("digest")).map_err(Refusal::from)?;
        let file = self.intake.fetch_artifact("digest", digest).await?;
        let model = self.catalog.add(&name, digest, file.path()).await?.to_wire();
        Ok(Response::new(v1::AddModelResponse { model: Some(model) }))
    }
}
