//! The recorded cases of the reference programs, in the folder beside this one or in that of `TESSERA_GOLDENS`.

use std::{collections::BTreeSet, path::Path};

use tests::goldens;

/// What cannot be replayed yet: operations, and architectures of networks. This list only ever grows shorter.
const NOT_BUILT_YET: &[&str] = &[];

#[test]
fn everything_that_is_built_agrees_with_the_reference() {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let others = std::env::var_os("TESSERA_GOLDENS");
    let groups = goldens::run(others.as_deref().map_or(&ours, Path::new), &[]).expect("the cases can be read");

    let wrong: Vec<_> = groups.iter().filter(|group| !group.failed.is_empty()).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let missing: BTreeSet<_> =
        groups.iter().flat_map(|group| &group.not_built).map(|(_, what)| what.as_str()).collect();
    let listed: BTreeSet<_> = NOT_BUILT_YET.iter().copied().collect();
    if others.is_some() {
        assert!(missing.is_subset(&listed), "not built, and not listed as such: {:?}", &missing - &listed);
    } else {
        assert_eq!(missing, listed, "the list of what is not built is out of date");
    }
}
