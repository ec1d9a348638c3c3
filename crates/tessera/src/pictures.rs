//! The pictures that a command line means: files as they are named, and of folders the pictures below them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use domain::picture::Format;
use service::report::with_hint;
use walkdir::WalkDir;

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Where it lies below the folder that was named; of a file that was named itself, its name.
    pub below: PathBuf,
    /// Whether it was found in a folder.
    pub in_folder: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The pictures: in the order of the command line, those of a folder by name.
    pub pictures: Vec<Found>,
    /// How many files in folders have the extension of no picture.
    pub left_out: usize,
    /// What could not be looked into, and why.
    pub unreadable: Vec<anyhow::Error>,
}

/// Finds the pictures that `named` means. Those in the folder `output` are results, and left alone.
///
/// Links are followed; a folder that a link leads back into is not entered again.
///
/// # Errors
/// If a name leads nowhere, a folder is named but none for the results, or there is no picture at all.
pub fn gather(named: &[PathBuf], output: Option<&Path>) -> anyhow::Result<Gathered> {
    let mut gathered = Gathered::default();
    for path in named {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        if metadata.is_file() {
            let below = path.file_name().with_context(|| format!("`{}` is no file", path.display()))?.into();
            gathered.pictures.push(Found { path: path.clone(), below, in_folder: false });
        } else if metadata.is_dir() {
            let Some(output) = output else {
                let error = anyhow!("`{}` is a folder, and nothing says where its results go", path.display());
                return Err(with_hint(error, "name a folder for them with --output"));
            };
            gathered.folder(path, output)?;
        } else {
            bail!("`{}` is neither a file nor a folder", path.display());
        }
    }
    if gathered.pictures.is_empty() && gathered.unreadable.is_empty() {
        let named: Vec<_> = named.iter().map(|path| format!("`{}`", path.display())).collect();
        let error = anyhow!("there is no picture in {}", named.join(", "));
        return Err(with_hint(error, "pictures are files called .png, .jpg, .tif or .webp"));
    }
    Ok(gathered)
}

impl Gathered {
    fn folder(&mut self, folder: &Path, output: &Path) -> anyhow::Result<()> {
        let results = output.canonicalize().ok(); // none, where there is no such folder yet
        let is_results = |path: &Path| results.is_some() && path.canonicalize().ok() == results;
        if is_results(folder) {
            let error = anyhow!("the results of `{}` would lie among its pictures", folder.display());
            return Err(with_hint(error, "name another folder with --output"));
        }
        let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| !(entry.file_type().is_dir() && is_results(entry.path()))) {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) if entry.file_type().is_file() && is_picture(entry.path()) => {
                    let below = entry.path().strip_prefix(folder).expect("a walk stays below its root").to_owned();
                    self.pictures.push(Found { path: entry.into_path(), below, in_folder: true });
                }
                Ok(_) => self.left_out += 1,
                Err(error) if error.loop_ancestor().is_some() => {} // what is there was seen
                Err(error) => match error.path() {
                    // A link that leads nowhere.
                    Some(path) if !is_picture(path) && is_missing(&error) => self.left_out += 1,
                    path => {
                        let path = path.unwrap_or(folder).display().to_string();
                        self.unreadable.push(anyhow::Error::new(error).context(format!("cannot read `{path}`")));
                    }
                },
            }
        }
        Ok(())
    }
}

fn is_missing(error: &walkdir::Error) -> bool {
    error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Whether a file is called as a picture is.
fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|extension| Format::from_extension(&extension.to_string_lossy()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with empty files of these names.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    /// The pictures found, as they lie below, and how many files were left out.
    fn below(named: &[PathBuf], output: &Path) -> (Vec<String>, usize) {
        let gathered = gather(named, Some(output)).unwrap();
        assert!(gathered.unreadable.is_empty(), "{:?}", gathered.unreadable);
        (gathered.pictures.iter().map(|found| found.below.display().to_string()).collect(), gathered.left_out)
    }

    #[test]
    fn a_folder_means_the_pictures_below_it_by_name() {
        let folder = folder(&["in/b.PNG", "in/a/z.jpg", "in/a/.notes", "in/c.gif", "in/a/b/y.webp", "x.tif"]);
        let path = |name: &str| folder.path().join(name);
        let (found, left_out) = below(&[path("x.tif"), path("in")], &path("out"));
        assert_eq!(found, ["x.tif", "a/b/y.webp", "a/z.jpg", "b.PNG"]);
        assert_eq!(left_out, 2);
    }

    #[test]
    fn results_below_the_folder_are_not_pictures_of_it() {
        let folder = folder(&["in/a.png", "in/out/a.png", "in/output/b.png"]);
        let path = |name: &str| folder.path().join(name);
        let (found, _) = below(&[path("in")], &path("in/../in/out/"));
        assert_eq!(found, ["a.png", "output/b.png"]);
        let error = gather(&[path("in")], Some(&path("in/out/.."))).unwrap_err().to_string();
        assert!(error.ends_with("would lie among its pictures"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_a_loop_ends() {
        use std::os::unix::fs::symlink;
        let folder = folder(&["in/a.png", "elsewhere/b.png"]);
        let path = |name: &str| folder.path().join(name);
        symlink(path("in"), path("in/loop")).unwrap();
        symlink(path("elsewhere"), path("in/linked")).unwrap();
        symlink("nowhere", path("in/lost")).unwrap();
        let (found, left_out) = below(&[path("in")], &path("out"));
        assert_eq!((found, left_out), (vec!["a.png".to_owned(), "linked/b.png".to_owned()], 1));
        symlink("nowhere", path("in/lost.png")).unwrap();
        let gathered = gather(&[path("in")], Some(&path("out"))).unwrap();
        assert_eq!((gathered.pictures.len(), gathered.unreadable.len()), (2, 1));
    }

    #[test]
    fn what_means_no_picture_is_refused() {
        let folder = folder(&["in/notes.txt"]);
        let path = |name: &str| folder.path().join(name);
        let error = |named: &str, output: Option<&Path>| gather(&[path(named)], output).unwrap_err().to_string();
        assert!(error("missing.png", None).starts_with("cannot read `"));
        assert!(error("in", None).ends_with("nothing says where its results go"));
        assert!(error("in", Some(&path("out"))).starts_with("there is no picture in `"));
    }
}
