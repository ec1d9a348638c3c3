//! How a command ends.

use std::process::ExitCode;

/// Why a command did not do what it was asked to do.
#[derive(Debug)]
pub enum Failure {
    /// A job failed or was cancelled; what there is to say has been said.
    Job,
    /// The farm could not be asked, or refused; what there is to say has been said.
    Refused,
    /// The farm could not be asked: wrong arguments, no server, a refused request.
    Ask(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Ask(error.into())
    }
}

/// What a command gives back.
pub type Outcome = Result<(), Failure>;

/// Tells `outcome` to the caller of the program: 0 done, 1 the job failed, 2 could not ask.
pub fn code(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Job) => ExitCode::from(1),
        Err(Failure::Refused) => ExitCode::from(2),
        Err(Failure::Ask(error)) => {
            eprint!("{}", service::report::text(&error));
            ExitCode::from(2)
        }
    }
}
