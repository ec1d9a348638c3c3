//! Reading a network's sizes from the shapes of its tensors, with an error that names the tensor where one makes no sense.

use std::collections::BTreeSet;

use super::{DetectError, Shapes};

/// Larger sides than this are not believed: they would only make the arithmetic on them overflow.
const SIDE_LIMIT: usize = 1 << 16;

/// The shapes of a file that is taken for a network of `architecture`.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) architecture: &'static str,
    pub(super) shapes: &'a Shapes,
}

impl Reader<'_> {
    /// Says whether there is a tensor of this name.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.shapes.contains_key(tensor)
    }

    /// Returns the error that `tensor` is missing.
    pub(super) fn missing(&self, tensor: impl Into<String>) -> DetectError {
        DetectError::Missing { architecture: self.architecture, tensor: tensor.into() }
    }

    /// Returns the error that `what` cannot be told from the shape of `tensor`.
    pub(super) fn odd(&self, tensor: &str, what: &'static str) -> DetectError {
        let found = self.shapes.get(tensor).cloned().unwrap_or_default();
        DetectError::Odd { architecture: self.architecture, tensor: tensor.to_owned(), found, what }
    }

    /// Returns the sides of `tensor`, of which there must be `N`, each at least 1.
    pub(super) fn sides<const N: usize>(&self, tensor: &str, what: &'static str) -> Result<[usize; N], DetectError> {
        let found = self.shapes.get(tensor).ok_or_else(|| self.missing(tensor))?;
        let sides: [usize; N] = found[..].try_into().map_err(|_| self.odd(tensor, what))?;
        match sides.iter().all(|side| (1..=SIDE_LIMIT).contains(side)) {
            true => Ok(sides),
            false => Err(self.odd(tensor, what)),
        }
    }

    /// Returns the length of the vector `tensor`.
    pub(super) fn vector(&self, tensor: &str) -> Result<usize, DetectError> {
        let [length] = self.sides(tensor, "the number of channels")?;
        Ok(length)
    }

    /// Returns the outputs and inputs of the linear layer `name`.
    pub(super) fn linear(&self, name: &str) -> Result<(usize, usize), DetectError> {
        let [outputs, inputs] = self.sides(&format!("{name}.weight"), "the number of channels")?;
        Ok((outputs, inputs))
    }

    /// Returns the outputs and inputs of the convolution `name`, whose kernel must be square.
    pub(super) fn convolution(&self, name: &str) -> Result<(usize, usize), DetectError> {
        let (outputs, inputs, _) = self.kernel(name)?;
        Ok((outputs, inputs))
    }

    /// Returns the outputs, the inputs and the side of the kernel of the convolution `name`.
    pub(super) fn kernel(&self, name: &str) -> Result<(usize, usize, usize), DetectError> {
        let (tensor, what) = (format!("{name}.weight"), "the number of channels");
        let [outputs, inputs, height, width] = self.sides(&tensor, what)?;
        if height != width {
            return Err(self.odd(&tensor, what));
        }
        Ok((outputs, inputs, height))
    }

    /// Returns what [`Self::kernel`] does, of a kernel with a middle.
    pub(super) fn odd_kernel(&self, name: &str) -> Result<(usize, usize, usize), DetectError> {
        match self.kernel(name)? {
            (_, _, side) if side.is_multiple_of(2) => {
                Err(self.odd(&format!("{name}.weight"), "the middle of the kernel"))
            }
            found => Ok(found),
        }
    }

    /// Returns the side of a square window from a table with a row for each of its pixels.
    pub(super) fn window(&self, tensor: &str) -> Result<usize, DetectError> {
        let what = "the size of the window";
        let [pixels, _] = self.sides(tensor, what)?;
        root(pixels).ok_or_else(|| self.odd(tensor, what))
    }

    /// Returns the channels and the factor of the pixel shuffle behind the convolution `name`: the first of the likely numbers
    /// of channels that leaves a square.
    pub(super) fn shuffle(&self, name: &str, input_channels: usize) -> Result<(usize, usize), DetectError> {
        let (outputs, _) = self.convolution(name)?;
        [input_channels, 3, 4, 1]
            .into_iter()
            .find_map(|channels| Some((channels, root(whole(outputs, channels)?)?)))
            .ok_or_else(|| self.odd(&format!("{name}.weight"), "the scale"))
    }

    /// Returns the factor of the pixel shuffle to `channels` behind the convolution `name`.
    pub(super) fn shuffle_to(&self, name: &str, channels: usize) -> Result<usize, DetectError> {
        let (outputs, _) = self.convolution(name)?;
        let factor = whole(outputs, channels).and_then(root);
        factor.ok_or_else(|| self.odd(&format!("{name}.weight"), "the scale"))
    }

    /// Returns the length of a list of parts: one more than the largest `i` of a name `<list>.<i>.…`.
    ///
    /// A list cannot be longer than the file has names: of a longer one the first gap is reported, so that no amount of work
    /// follows from a large number in a name.
    pub(super) fn length(&self, list: &str) -> Result<usize, DetectError> {
        let there = self.indices(list);
        let length = there.last().map_or(0, |last| last.saturating_add(1));
        if length > self.shapes.len() { Err(self.gap(list, &there)) } else { Ok(length) }
    }

    /// Returns the length of a list without gaps, so that no number of such lists is longer than the file has names.
    pub(super) fn count(&self, list: &str) -> Result<usize, DetectError> {
        let there = self.indices(list);
        if there.last().is_some_and(|last| *last >= there.len()) {
            Err(self.gap(list, &there))
        } else {
            Ok(there.len())
        }
    }

    /// Returns the length that the lists called `list(0)` to `list(lists - 1)` share.
    pub(super) fn shared(&self, lists: usize, list: impl Fn(usize) -> String) -> Result<usize, DetectError> {
        let first = self.count(&list(0))?;
        for i in 1..lists {
            let count = self.count(&list(i))?;
            if count != first {
                let (lacks, at) = if count < first { (i, count) } else { (0, first) };
                return Err(self.missing(format!("{}.{at}", list(lacks))));
            }
        }
        Ok(first)
    }

    fn indices(&self, list: &str) -> BTreeSet<usize> {
        let prefix = format!("{list}.");
        let names = self.shapes.range(prefix.clone()..).map_while(|(name, _)| name.strip_prefix(&prefix));
        names.filter_map(|rest| rest.split_once('.')?.0.parse().ok()).collect()
    }

    fn gap(&self, list: &str, there: &BTreeSet<usize>) -> DetectError {
        let gap = (0..=there.len()).find(|i| !there.contains(i)).expect("so few parts leave one out");
        self.missing(format!("{list}.{gap}"))
    }
}

/// Returns how often `part` goes into `whole`, if it does so without a rest.
pub(super) fn whole(whole: usize, part: usize) -> Option<usize> {
    (part > 0 && whole.is_multiple_of(part)).then(|| whole / part)
}

/// Returns the square root of `square`, if it is a whole number above 0.
pub(super) fn root(square: usize) -> Option<usize> {
    let root = square.isqrt();
    (root > 0 && root * root == square).then_some(root)
}
