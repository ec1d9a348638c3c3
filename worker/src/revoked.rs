//! Which orders are void.

use std::collections::{HashMap, VecDeque};

use domain::task::ResultKey;
use proto::farm::{Order, Revocation};

/// How many revoked keys are remembered, at about 150 bytes each. An order whose revocation was forgotten is rendered
/// in vain, which is no worse than having been a little too quick.
const REMEMBERED: usize = 1 << 17;

/// The revocations heard so far. They are heard once, while an order that they void may come hours later.
#[derive(Debug)]
pub struct Revoked {
    /// Up to which dispatch number the orders for a key are void.
    up_to: HashMap<ResultKey, u64>,
    /// The keys in the order in which they were first heard.
    heard: VecDeque<ResultKey>,
    limit: usize,
}

impl Default for Revoked {
    fn default() -> Self {
        Self { up_to: HashMap::new(), heard: VecDeque::new(), limit: REMEMBERED }
    }
}

impl Revoked {
    /// Takes note of `revocation`.
    pub fn note(&mut self, revocation: &Revocation) {
        for &key in &revocation.keys {
            let up_to = self.up_to.entry(key).or_insert_with(|| {
                self.heard.push_back(key);
                0
            });
            *up_to = revocation.up_to_dispatch.max(*up_to);
            if self.heard.len() > self.limit
                && let Some(oldest) = self.heard.pop_front()
            {
                self.up_to.remove(&oldest);
            }
        }
    }

    /// Whether `order` was taken back.
    pub fn voids(&self, order: &Order) -> bool {
        self.up_to.get(&order.result_key()).is_some_and(|&up_to| order.dispatch <= up_to)
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        digest::Digest,
        job::Precision,
        region::Region,
        task::{Context, Part, Place},
    };

    use super::*;

    fn order(x: u32, dispatch: u64) -> Order {
        let context = Context::Upscale {
            revision: 1,
            picture: Digest::of(b"picture"),
            decode: 1,
            upscale_model: Digest::of(b"model"),
            scale: 2,
            precision: Precision::Exact,
            place: Place::AnyWorker,
        };
        Order { dispatch, job: "job".parse().unwrap(), task: 0, context, part: Part::Region(Region::new(x, 0, 8, 8)) }
    }

    fn revocation(order: &Order, up_to_dispatch: u64) -> Revocation {
        Revocation { keys: vec![order.result_key()], up_to_dispatch }
    }

    #[test]
    fn an_order_is_void_up_to_the_dispatch_that_was_named() {
        let mut revoked = Revoked::default();
        revoked.note(&revocation(&order(0, 0), 7));
        assert!(revoked.voids(&order(0, 7)));
        assert!(!revoked.voids(&order(0, 8)));
        assert!(!revoked.voids(&order(1, 7)));
        revoked.note(&revocation(&order(0, 0), 5)); // heard late
        assert!(revoked.voids(&order(0, 7)));
    }

    #[test]
    fn the_oldest_revocations_are_forgotten_first() {
        let mut revoked = Revoked { limit: 2, ..Revoked::default() };
        for x in 0..3 {
            revoked.note(&revocation(&order(x, 0), 9));
            revoked.note(&revocation(&order(x, 0), 9)); // twice is once
        }
        assert_eq!([0, 1, 2].map(|x| revoked.voids(&order(x, 1))), [false, true, true]);
        assert_eq!(revoked.up_to.len(), revoked.heard.len());
    }
}
