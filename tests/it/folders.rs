//! Folders in, folders out: mirrored, done ones skipped, one broken picture the loss of none but itself.

use anyhow::Result;
use tests::pictures::png;

use crate::newcomer::{Home, size, told};

fn write(home: &Home, name: &str, bytes: &[u8]) -> Result<()> {
    let path = home.path(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(std::fs::write(path, bytes)?)
}

#[test]
fn a_tree_of_pictures_comes_out_as_it_went_in_and_a_broken_one_is_told_at_the_end() -> Result<()> {
    let home = Home::new()?;
    write(&home, "in/a.png", &png(20, 10))?;
    write(&home, "in/deep/er/b.png", &png(9, 11))?;
    write(&home, "in/deep/notes.txt", b"no picture, and does not say so")?;
    write(&home, "in/deep/broken.png", b"no picture")?;
    write(&home, "single.png", &png(5, 5))?;
    #[cfg(unix)]
    std::os::unix::fs::symlink(home.path("in"), home.path("in/deep/loop"))?;

    // The results lie among the pictures, and are none of these the next time.
    let line = ["upscale", "in", "single.png", "-o", "in/out"];
    let output = home.run(&line)?;
    let words = told(&output);
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert_eq!(size(&home.path("in/out/a.png"))?, (40, 20));
    assert_eq!(size(&home.path("in/out/deep/er/b.png"))?, (18, 22));
    assert_eq!(size(&home.path("in/out/single.png"))?, (10, 10));
    assert_eq!(std::fs::read_dir(home.path("in/out/deep"))?.count(), 1, "the broken one has no result");
    for part in ["left out 1 file that is no picture", "broken.png", "1 of 4 pictures have no result"] {
        assert!(words.contains(part), "`{part}` is not in: {words}");
    }
    let mut printed: Vec<_> = std::str::from_utf8(&output.stdout)?.lines().collect();
    printed.sort_unstable();
    assert_eq!(printed, ["in/out/a.png", "in/out/deep/er/b.png", "in/out/single.png"]);

    // What is done is skipped; what is asked for again is done again.
    std::fs::remove_file(home.path("in/deep/broken.png"))?;
    write(&home, "in/out/a.png", b"mine")?;
    std::fs::remove_file(home.path("in/out/single.png"))?;
    let output = home.run(&line)?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(output.stdout, b"in/out/single.png\n");
    assert!(told(&output).contains("skipped 2 pictures whose result exists"), "{}", told(&output));
    assert_eq!(std::fs::read(home.path("in/out/a.png"))?, b"mine");
    let output = home.run(&["upscale", "in", "-o", "in/out", "--force"])?;
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(size(&home.path("in/out/a.png"))?, (40, 20));
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_done_is_refused_before_anything_runs() -> Result<()> {
    let home = Home::new()?;
    write(&home, "in/a.png", &png(8, 8))?;
    write(&home, "in/a.tif", b"")?;
    write(&home, "empty/notes.txt", b"")?;
    write(&home, "taken", b"")?;
    let refused: [(&[&str], &str); 5] = [
        (&["upscale", "in"], "nothing says where its results go"),
        (&["upscale", "empty", "-o", "out"], "there is no picture in `empty`"),
        (&["upscale", "in", "-o", "in"], "would lie among its pictures"),
        (&["upscale", "in", "-o", "taken"], "`taken` is a file"),
        (&["upscale", "in", "-o", "out", "--format", "png"], "would both be `out/a.png`"),
    ];
    for (arguments, words) in refused {
        let output = home.run(arguments)?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(words), "`{words}` is not in: {}", told(&output));
    }
    assert!(!home.path("out").exists(), "nothing is left behind");
    Ok(())
}
