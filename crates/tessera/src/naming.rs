//! Where results go, and what they are called.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::bail;
use domain::picture::Format;
use service::report::with_hint;

use crate::pictures::Found;

/// A picture and the file that its result goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The picture.
    pub input: PathBuf,
    /// Its result.
    pub output: PathBuf,
    /// The result's format; `None`: the picture's own.
    pub format: Option<Format>,
    /// Whether the picture was found in a folder.
    pub in_folder: bool,
}

/// Says which file the result of each picture goes to. A picture that was named twice is done once.
///
/// `output` is a file for one picture, and otherwise a folder in which results are called as their pictures are, and those
/// of a folder lie as these do in theirs; without it each result lies beside its picture, called `NAME@2x.EXT` for the
/// `suffix` `2x`.
///
/// # Errors
/// If two results would be one file, a result would be a picture's own file, or an extension and `format` disagree.
pub fn errands(
    pictures: &[Found],
    output: Option<&Path>,
    format: Option<Format>,
    suffix: &str,
) -> anyhow::Result<Vec<Errand>> {
    let several = pictures.len() > 1 || pictures.iter().any(|found| found.in_folder);
    if let Some(output) = output.filter(|output| several && output.is_file()) {
        bail!("`{}` is a file, and a folder is needed for the results", output.display());
    }
    let mut errands = Vec::new();
    let mut seen = BTreeSet::new();
    for Found { path, below, in_folder } in pictures {
        let (output, format) = match output {
            None => (path.with_file_name(beside(path, format, suffix)), format),
            Some(output) if several || is_folder(output) => (output.join(mirrored(below, format)), format),
            Some(output) => (output.to_owned(), Some(by_extension(output, format)?)),
        };
        if seen.insert((place(path), output.clone())) {
            errands.push(Errand { input: path.clone(), output, format, in_folder: *in_folder });
        }
    }
    check(&errands)?;
    Ok(errands)
}

/// Whether `path` means a folder: it is one, or its name ends with a separator.
pub fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

/// The format of a file called `output`, which must agree with the one asked for.
fn by_extension(output: &Path, format: Option<Format>) -> anyhow::Result<Format> {
    let extension = output.extension().unwrap_or_default().to_string_lossy().into_owned();
    match (Format::from_extension(&extension), format) {
        (Some(named), Some(asked)) if named != asked => {
            bail!("`{}` is called a {} file, but --format asks for {}", output.display(), named.name(), asked.name())
        }
        (_, Some(asked)) => Ok(asked),
        (Some(named), None) => Ok(named),
        (None, None) => Err(with_hint(
            anyhow::anyhow!("the extension of `{}` names no format", output.display()),
            "use .png, .jpg, .tif or .webp, say --format, or end the name of a folder with `/`",
        )),
    }
}

/// `a/photo.jpg` as it is called in a folder of results: with the extension of another format if there is one.
fn mirrored(name: &Path, format: Option<Format>) -> PathBuf {
    let own = name.extension().and_then(|extension| Format::from_extension(&extension.to_string_lossy()));
    match format {
        Some(format) if own != Some(format) => name.with_extension(extension(format)),
        _ => name.to_owned(),
    }
}

/// `photo@2x.jpg` for `photo.jpg`.
fn beside(input: &Path, format: Option<Format>, suffix: &str) -> OsString {
    let mut name = input.file_stem().unwrap_or_default().to_owned();
    name.push(format!("@{suffix}"));
    if let Some(extension) = mirrored(input, format).extension() {
        name.push(".");
        name.push(extension);
    }
    name
}

/// The usual file extension.
pub fn extension(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "jpg",
        Format::Tiff => "tif",
        Format::Png | Format::Webp => format.name(),
    }
}

fn check(errands: &[Errand]) -> anyhow::Result<()> {
    let inputs: BTreeMap<PathBuf, &Path> =
        errands.iter().map(|errand| (place(&errand.input), errand.input.as_path())).collect();
    let mut outputs: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for errand in errands {
        let place = place(&errand.output);
        if let Some(input) = inputs.get(&place) {
            let error = anyhow::anyhow!("the result of `{}` would be written over a picture", input.display());
            return Err(with_hint(error, "choose another place with --output"));
        }
        if let Some(other) = outputs.insert(place, &errand.input) {
            let (one, two, output) = (other.display(), errand.input.display(), errand.output.display());
            let error = anyhow::anyhow!("the results of `{one}` and `{two}` would both be `{output}`");
            return Err(with_hint(error, "run them apart, with an --output folder each"));
        }
    }
    Ok(())
}

/// One spelling for all that name the same file.
fn place(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().or_else(|_| std::path::absolute(folder)).unwrap_or_else(|_| folder.to_owned());
    folder.join(path.file_name().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Found {
        let path = PathBuf::from(path);
        Found { below: path.file_name().unwrap().into(), path, in_folder: false }
    }

    fn in_folder(folder: &str, below: &str) -> Found {
        Found { path: Path::new(folder).join(below), below: below.into(), in_folder: true }
    }

    fn shown(pictures: &[Found], output: Option<&str>, format: Option<Format>) -> Result<Vec<String>, String> {
        let errands = errands(pictures, output.map(Path::new), format, "4x").map_err(|error| error.to_string())?;
        let show = |errand: Errand| {
            let format = errand.format.map_or("own", Format::name);
            format!("{} {format}", errand.output.display())
        };
        Ok(errands.into_iter().map(show).collect())
    }

    fn names(inputs: &[&str], output: Option<&str>, format: Option<Format>) -> Result<Vec<String>, String> {
        let pictures: Vec<_> = inputs.iter().map(|path| file(path)).collect();
        shown(&pictures, output, format)
    }

    #[track_caller]
    fn check(inputs: &[&str], output: Option<&str>, format: Option<Format>, expected: &[&str]) {
        assert_eq!(names(inputs, output, format).unwrap(), expected);
    }

    #[test]
    fn one_picture_goes_to_the_file_named_in_the_format_of_its_extension() {
        check(&["a.jpg"], Some("b.png"), None, &["b.png png"]);
        check(&["a.jpg"], Some("b.JPG"), None, &["b.JPG jpeg"]);
        check(&["a.jpg"], Some("b.out"), Some(Format::Tiff), &["b.out tiff"]);
    }

    #[test]
    fn in_a_folder_results_are_called_as_their_pictures_are() {
        check(&["x/a.jpg"], Some("out/"), None, &["out/a.jpg own"]);
        check(&["a.jpg", "b.tif"], Some("out"), None, &["out/a.jpg own", "out/b.tif own"]);
        check(&["a.jpeg", "b.png"], Some("out"), Some(Format::Jpeg), &["out/a.jpeg jpeg", "out/b.jpg jpeg"]);
    }

    #[test]
    fn results_of_a_folder_lie_as_their_pictures_do() {
        let one = [in_folder("in", "a/b.jpg")];
        assert_eq!(shown(&one, Some("out"), None).unwrap(), ["out/a/b.jpg own"]);
        let mixed =
            [in_folder("in", "a/b.jpg"), in_folder("in", "b.jpg"), file("x/c.png"), in_folder("other", "d/b.jpg")];
        let expected = ["out/a/b.png png", "out/b.png png", "out/c.png png", "out/d/b.png png"];
        assert_eq!(shown(&mixed, Some("out"), Some(Format::Png)).unwrap(), expected);
        let twice = shown(&[in_folder("in", "b.jpg"), in_folder("other", "b.jpg")], Some("out"), None).unwrap_err();
        assert_eq!(twice, "the results of `in/b.jpg` and `other/b.jpg` would both be `out/b.jpg`");
        let named_again = [in_folder("in", "b.jpg"), file("in/b.jpg")];
        assert_eq!(shown(&named_again, Some("out"), None).unwrap(), ["out/b.jpg own"]);
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("out.png");
        std::fs::write(&taken, "").unwrap();
        let refused = shown(&one, taken.to_str(), None).unwrap_err();
        assert!(refused.ends_with("is a file, and a folder is needed for the results"), "{refused}");
    }

    #[test]
    fn without_an_output_a_result_lies_beside_its_picture() {
        check(&["x/a.b.jpg"], None, None, &["x/a.b@4x.jpg own"]);
        check(&["a.jpg", "c"], None, Some(Format::Png), &["a@4x.png png", "c@4x.png png"]);
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let error = |inputs: &[&str], output, format| names(inputs, output, format).unwrap_err();
        assert_eq!(error(&["a.jpg"], Some("b.gif"), None), "the extension of `b.gif` names no format");
        let disagree = error(&["a.jpg"], Some("b.png"), Some(Format::Tiff));
        assert_eq!(disagree, "`b.png` is called a png file, but --format asks for tiff");
        let twice = error(&["x/a.jpg", "y/a.jpg"], Some("out"), None);
        assert_eq!(twice, "the results of `x/a.jpg` and `y/a.jpg` would both be `out/a.jpg`");
        let over = error(&["a.jpg"], Some("./a.jpg"), None);
        assert_eq!(over, "the result of `a.jpg` would be written over a picture");
        let other = error(&["a.jpg", "out/a.jpg"], Some("out"), None);
        assert_eq!(other, "the result of `out/a.jpg` would be written over a picture");
    }
}
