//! The tensors of a network, listed part by part as the network is put together.

/// A tensor of a network, as its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its sides, slowest first.
    pub shape: Vec<usize>,
    /// What it is there for.
    pub role: Role,
}

/// What a tensor is there for, and so whether a file must have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It was trained: a file must have it.
    Parameter,
    /// It was measured in training: a file must have it.
    Statistic,
    /// It was trained, but what counts was kept in other tensors: a file may have it, and its values are not read.
    Unused,
    /// It follows from the sizes of the network: a file may have it, and its values are not read.
    Buffer,
    /// It says something by being there: its values are not read, and it may have any shape.
    Flag,
    /// It depends on how the network was trained and not on what it does: a file may have it, of any shape.
    Leftover,
}

impl Role {
    /// Says whether a network cannot do without.
    pub fn is_needed(self) -> bool {
        matches!(self, Self::Parameter | Self::Statistic)
    }
}

/// Puts a list of tensors together.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) parts: Vec<Part>,
}

impl Builder {
    /// Adds one tensor.
    pub(super) fn tensor(&mut self, name: impl Into<String>, shape: impl Into<Vec<usize>>, role: Role) {
        self.parts.push(Part { name: name.into(), shape: shape.into(), role });
    }

    /// Adds a trained tensor.
    pub(super) fn parameter(&mut self, name: impl Into<String>, shape: impl Into<Vec<usize>>) {
        self.tensor(name, shape, Role::Parameter);
    }

    /// Adds a convolution with bias.
    pub(super) fn conv(&mut self, name: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.conv_if(true, name, outputs, inputs, kernel);
    }

    /// Adds a convolution, with a bias if so said.
    pub(super) fn conv_if(&mut self, bias: bool, name: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.parameter(format!("{name}.weight"), [outputs, inputs, kernel, kernel]);
        self.bias_if(bias, name, outputs);
    }

    /// Adds a linear layer, with a bias if so said.
    pub(super) fn linear_if(&mut self, bias: bool, name: &str, outputs: usize, inputs: usize) {
        self.parameter(format!("{name}.weight"), [outputs, inputs]);
        self.bias_if(bias, name, outputs);
    }

    /// Adds a linear layer with bias.
    pub(super) fn linear(&mut self, name: &str, outputs: usize, inputs: usize) {
        self.linear_if(true, name, outputs, inputs);
    }

    /// Adds a normalisation: a factor and an offset for each channel.
    pub(super) fn norm(&mut self, name: &str, channels: usize) {
        self.parameter(format!("{name}.weight"), [channels]);
        self.bias_if(true, name, channels);
    }

    /// Adds a batch normalisation: a norm with what it measured.
    pub(super) fn batch_norm(&mut self, name: &str, channels: usize) {
        self.norm(name, channels);
        self.tensor(format!("{name}.running_mean"), [channels], Role::Statistic);
        self.tensor(format!("{name}.running_var"), [channels], Role::Statistic);
        self.tensor(format!("{name}.num_batches_tracked"), [], Role::Leftover);
    }

    /// Adds the two layers of a transformer's feed-forward part.
    pub(super) fn mlp(&mut self, name: &str, channels: usize, hidden: usize) {
        self.linear(&format!("{name}.fc1"), hidden, channels);
        self.linear(&format!("{name}.fc2"), channels, hidden);
    }

    fn bias_if(&mut self, bias: bool, name: &str, outputs: usize) {
        if bias {
            self.parameter(format!("{name}.bias"), [outputs]);
        }
    }
}
