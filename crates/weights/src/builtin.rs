//! The models that come with the program, so that its first command needs no download.

/// A model whose weights are part of the executable.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// The name a user asks for it by.
    pub name: &'static str,
    /// How many times wider and higher it makes a picture.
    pub scale: u32,
    /// The `.safetensors` file, as it would lie on disk.
    pub bytes: &'static [u8],
}

/// Every built-in model. The first is the one used when none is named.
pub const BUILTIN: &[Builtin] = &[
    Builtin { name: "tessera-2x", scale: 2, bytes: include_bytes!("../builtin/tessera-2x.safetensors") },
    Builtin { name: "tessera-4x", scale: 4, bytes: include_bytes!("../builtin/tessera-4x.safetensors") },
];

/// Finds the built-in model called `name`.
pub fn find(name: &str) -> Option<&'static Builtin> {
    BUILTIN.iter().find(|builtin| builtin.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::detect::detect;

    #[test]
    fn every_built_in_model_is_what_its_entry_says() {
        for builtin in BUILTIN {
            let checkpoint = Checkpoint::from_bytes(builtin.bytes).unwrap();
            let network = detect(&checkpoint).unwrap();
            assert_eq!(network.facts.scale, builtin.scale, "{}", builtin.name);
            assert_eq!(network.facts.input_channels, 3, "{}", builtin.name);
            assert_eq!(find(builtin.name).unwrap().bytes, builtin.bytes);
        }
    }
}
