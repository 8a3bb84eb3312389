//! Paths of the host, from a container that has the host's root somewhere (`kubectl debug node` has it at `/host`). There the kernel
//! takes an absolute link, such as Debian's and Ubuntu's `/var/run`, for one into the container's own root.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Links that a path may lead by: as many as Linux follows (path_resolution(7)).
const LINKS: usize = 40;

/// Where a path of the host is: links, and `..`, lead where they do for the host, and so never out of `root`. Parts of it that are not
/// there stand for themselves.
///
/// # Errors
/// Those of reading a link, and `InvalidInput` where there are too many.
pub(crate) fn within(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut ahead = parts(path);
    let mut found = PathBuf::new();
    let mut links = 0;
    while let Some(part) = ahead.pop() {
        if part == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&part);
        match fs::read_link(root.join(&next)) {
            Ok(target) => {
                links += 1;
                if links > LINKS {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many symbolic links"));
                }
                if target.is_absolute() {
                    found = PathBuf::new();
                }
                ahead.extend(parts(&target));
            }
            // It is no link, or not there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                found = next;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(root.join(found))
}

/// The names in a path, the last first.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_where_they_do_on_the_host() {
        let root = std::env::temp_dir().join(format!("sluice-root-{}", std::process::id()));
        fs::create_dir_all(root.join("run/aws-node")).unwrap();
        fs::create_dir_all(root.join("var/lib")).unwrap();
        symlink("/run", root.join("var/run")).unwrap();
        symlink("../../../run", root.join("var/lib/run")).unwrap();
        symlink("round", root.join("round")).unwrap();
        for (path, there) in [
            ("/var/run/aws-node/ipam.json", "run/aws-node/ipam.json"),
            ("var/lib/run/aws-node", "run/aws-node"),
            ("/../run/./aws-node", "run/aws-node"),
            ("/var/lib/nothing/here", "var/lib/nothing/here"),
            ("/", ""),
        ] {
            assert_eq!(within(&root, Path::new(path)).unwrap(), root.join(there), "{path}");
        }
        assert_eq!(within(&root, Path::new("/round/x")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        fs::remove_dir_all(&root).unwrap();
    }
}
