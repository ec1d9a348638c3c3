//! Loaded models by key, the least recently used dropped when there are too many bytes of them.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Values of any types by type and key. What is in use stays alive with its users, even when it is dropped from here.
#[derive(Debug)]
pub struct Cache<K> {
    limit_bytes: u64,
    /// The one used last comes last.
    entries: Mutex<Vec<Entry<K>>>,
    /// Held while a value is made, so that no two threads make the same one.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Entry<K> {
    key: K,
    size_bytes: u64,
    value: Arc<dyn Any + Send + Sync>,
}

impl<K: Clone + PartialEq> Cache<K> {
    /// A cache that keeps at most `limit_bytes`, but always the value used last.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, entries: Mutex::default(), making: Mutex::default() }
    }

    /// The value of `key`; `make` makes it if it is not here, and says how many bytes it takes. Nothing may be made while
    /// something is being made.
    pub fn get_or_make<T: Any + Send + Sync, E>(
        &self,
        key: &K,
        make: impl FnOnce() -> Result<(T, u64), E>,
    ) -> Result<Arc<T>, E> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        let _making = lock(&self.making);
        if let Some(value) = self.get(key) {
            return Ok(value); // it was made while this thread waited
        }
        let (value, size_bytes) = make()?;
        let value = Arc::new(value);
        let mut entries = lock(&self.entries);
        entries.push(Entry { key: key.clone(), size_bytes, value: value.clone() });
        let mut total: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
        while total > self.limit_bytes && entries.len() > 1 {
            total -= entries.remove(0).size_bytes;
        }
        Ok(value)
    }

    /// What is here, the value used last first. Never waits for one that is being made.
    pub fn keys(&self) -> Vec<K> {
        lock(&self.entries).iter().rev().map(|entry| entry.key.clone()).collect()
    }

    fn get<T: Any + Send + Sync>(&self, key: &K) -> Option<Arc<T>> {
        let mut entries = lock(&self.entries);
        let place = entries.iter().position(|entry| entry.key == *key && entry.value.is::<T>())?;
        let entry = entries.remove(place);
        let value = entry.value.clone();
        entries.push(entry);
        value.downcast().ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Asks for each letter in turn from a cache of 10 bytes; shows what had to be made and what is left.
    fn check(asked: &str, size_bytes: u64, made: &str, left: &str) {
        let cache = Cache::new(10);
        let mut makings = String::new();
        for letter in asked.chars() {
            let make = || {
                makings.push(letter);
                Ok::<_, Infallible>((letter, size_bytes))
            };
            assert_eq!(*cache.get_or_make(&letter, make).unwrap(), letter);
        }
        assert_eq!(makings, made, "{asked}");
        assert_eq!(cache.keys(), left.chars().collect::<Vec<_>>(), "{asked}");
    }

    #[test]
    fn what_was_used_last_stays() {
        check("aaa", 5, "a", "a");
        check("abab", 5, "ab", "ba");
        check("abac", 5, "abc", "ca");
        check("abcab", 5, "abcab", "ba");
        check("ab", 11, "ab", "b");
    }

    #[test]
    fn values_of_different_types_share_a_key_and_the_room() {
        let cache = Cache::new(10);
        let make = |word: &'static str| move || Ok::<_, Infallible>((word, 6));
        assert_eq!(*cache.get_or_make(&'a', make("one")).unwrap(), "one");
        assert_eq!(*cache.get_or_make(&'a', || Ok::<_, Infallible>((1_u8, 4))).unwrap(), 1);
        assert_eq!(*cache.get_or_make(&'a', make("two")).unwrap(), "one");
        assert_eq!(*cache.get_or_make(&'b', make("three")).unwrap(), "three");
        assert_eq!(cache.keys(), ['b'], "what was used before it would not leave room for it");
    }

    #[test]
    fn what_could_not_be_made_is_not_kept() {
        let cache = Cache::new(10);
        assert_eq!(cache.get_or_make::<(), _>(&'a', || Err("no")), Err("no"));
        assert!(cache.keys().is_empty());
    }
}
