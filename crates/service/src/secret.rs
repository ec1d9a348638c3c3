//! A text that does not print.

use std::fmt;

/// A text that may hold a password. It prints with the password hidden, and only [`Secret::expose`] gives it away.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the library that needs it and for nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hide_password(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Replaces the password of a URL, and the values of its query, by `***`; a text that is no URL comes back whole.
pub fn hide_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    // The last `@` ends the user's part, so that a password that holds a `/`, `?` or `@` unescaped stays hidden too.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    let user = match user.map(|user| user.split_once(':')) {
        Some(Some((name, _))) => format!("{name}:***@"),
        Some(None) => "***@".to_owned(),
        None => String::new(),
    };
    let place = match place.split_once('?') {
        Some((place, query)) => {
            let hide = |pair: &str| pair.split_once('=').map_or(pair.to_owned(), |(name, _)| format!("{name}=***"));
            format!("{place}?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
        }
        None => place.to_owned(),
    };
    format!("{scheme}://{user}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new("amqp://farm:pa/s?s@w0rd@rabbit:5672/vhost?heartbeat=9");
        assert_eq!(secret.to_string(), "amqp://farm:***@rabbit:5672/vhost?heartbeat=***");
        assert_eq!(format!("{secret:?}"), "\"amqp://farm:***@rabbit:5672/vhost?heartbeat=***\"");
        assert_eq!(hide_password("amqp://token@rabbit"), "amqp://***@rabbit");
        assert_eq!(hide_password("memory:"), "memory:");
        assert_eq!(hide_password("file:///tmp/a"), "file:///tmp/a");
    }
}
