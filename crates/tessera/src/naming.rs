//! Where results go, and what they are called.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use domain::picture::Format;
use service::report::with_hint;

/// A picture and the file that its result goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The picture.
    pub input: PathBuf,
    /// Its result.
    pub output: PathBuf,
    /// The result's format; `None`: the picture's own.
    pub format: Option<Format>,
}

/// Says which file the result of each picture goes to.
///
/// `output` is a file for one picture, and otherwise a folder in which results are called as their pictures are;
/// without it each result lies beside its picture, called `NAME@2x.EXT` after the `scale`.
///
/// # Errors
/// If two results would be one file, a result would be a picture's own file, or an extension and `format` disagree.
pub fn errands(
    inputs: &[PathBuf],
    output: Option<&Path>,
    format: Option<Format>,
    scale: u32,
) -> anyhow::Result<Vec<Errand>> {
    let mut errands = Vec::new();
    for input in inputs {
        let name = input.file_name().with_context(|| format!("`{}` is no file", input.display()))?;
        let (output, format) = match output {
            None => (input.with_file_name(beside(input, format, scale)), format),
            Some(output) if inputs.len() > 1 || is_folder(output) => (output.join(mirrored(name, format)), format),
            Some(output) => (output.to_owned(), Some(by_extension(output, format)?)),
        };
        errands.push(Errand { input: input.clone(), output, format });
    }
    check(&errands)?;
    Ok(errands)
}

/// Whether `path` means a folder: it is one, or its name ends with a separator.
fn is_folder(path: &Path) -> bool {
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

/// `photo.jpg` as it is called in a folder of results: with the extension of another format if there is one.
fn mirrored(name: &std::ffi::OsStr, format: Option<Format>) -> PathBuf {
    let name = PathBuf::from(name);
    let own = name.extension().and_then(|extension| Format::from_extension(&extension.to_string_lossy()));
    match format {
        Some(format) if own != Some(format) => name.with_extension(extension(format)),
        _ => name,
    }
}

/// `photo@2x.jpg` for `photo.jpg`.
fn beside(input: &Path, format: Option<Format>, scale: u32) -> OsString {
    let mut name = input.file_stem().unwrap_or_default().to_owned();
    name.push(format!("@{scale}x"));
    let mirrored = mirrored(input.file_name().unwrap_or_default(), format);
    if let Some(extension) = mirrored.extension() {
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

    fn names(inputs: &[&str], output: Option<&str>, format: Option<Format>) -> Result<Vec<String>, String> {
        let inputs: Vec<_> = inputs.iter().map(PathBuf::from).collect();
        let errands = errands(&inputs, output.map(Path::new), format, 4).map_err(|error| error.to_string())?;
        let show = |errand: Errand| {
            let format = errand.format.map_or("own", Format::name);
            format!("{} {format}", errand.output.display())
        };
        Ok(errands.into_iter().map(show).collect())
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
