//! Errors as people read them: what went wrong, why, and the way out.
//!
//! ```
//! use anyhow::Context as _;
//! use service::report::{self, Hinted as _};
//!
//! let error = Err::<(), _>(std::io::Error::other("connection refused"))
//!     .context("cannot reach the broker")
//!     .hint("is RabbitMQ up? TESSERA_BROKER says where it is")
//!     .unwrap_err();
//! assert_eq!(
//!     report::text(&error),
//!     "error: cannot reach the broker\n  cause: connection refused\n\
//!      hint: is RabbitMQ up? TESSERA_BROKER says where it is\n"
//! );
//! ```

use std::{error::Error, fmt};

/// Adds the way out to an error.
pub trait Hinted<T> {
    /// Says what to do about the error, if there is one.
    fn hint(self, hint: impl Into<String>) -> Result<T, anyhow::Error>;
}

impl<T, E: Into<anyhow::Error>> Hinted<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> Result<T, anyhow::Error> {
        self.map_err(|error| with_hint(error, hint))
    }
}

/// Says what to do about `error`.
pub fn with_hint(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    WithHint { hint: hint.into(), error: error.into() }.into()
}

/// An error that prints as the one within.
#[derive(Debug)]
struct WithHint {
    hint: String,
    error: anyhow::Error,
}

impl fmt::Display for WithHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for WithHint {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// The way out that is nearest to the surface of `error`.
pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
    // The error within a hint prints in its place and is not part of the chain, so its own hint is looked for there.
    error.chain().find_map(|error| error.downcast_ref::<WithHint>()).map(|hinted| hinted.hint.as_str())
}

/// The causes of `error`, itself first, without those that only repeat what is above them.
pub fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if !causes.last().is_some_and(|last| last == &cause || last.ends_with(&format!(": {cause}"))) {
            causes.push(cause);
        }
    }
    causes
}

/// The error in lines: `error: …`, a line `cause: …` for each cause, and `hint: …` if there is a way out.
pub fn text(error: &anyhow::Error) -> String {
    let mut causes = causes(error).into_iter();
    let mut text = format!("error: {}\n", causes.next().unwrap_or_default());
    for cause in causes {
        text += &format!("  cause: {cause}\n");
    }
    if let Some(hint) = hint_of(error) {
        text += &format!("hint: {hint}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_the_way_out() {
        let error = anyhow!("no such file").context("cannot read `a.png`");
        assert_eq!(text(&error), "error: cannot read `a.png`\n  cause: no such file\n");
        let error = Err::<(), _>(error).hint("look again").context("no pictures").unwrap_err();
        let lines = "error: no pictures\n  cause: cannot read `a.png`\n  cause: no such file\nhint: look again\n";
        assert_eq!(text(&error), lines);
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow!("refused").context("cannot connect: refused").context("cannot connect: refused");
        assert_eq!(text(&error), "error: cannot connect: refused\n");
    }
}
