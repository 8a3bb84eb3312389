//! The seccomp profiles of the daemons' containers, where the kubelet finds them. Runtimes read a container's profile when they make the
//! container, so that one which is written in an init container counts for those that follow.

use std::fs;
use std::path::Path;

use super::files::{self, FileError};
use crate::daemons::Daemon;

/// Their directory in the kubelet's; pods name them by it (`localhostProfile: sluice/ipamd.json`).
const DIRECTORY: &str = "sluice";

/// The name of a daemon's profile, and what is in it: made from a list, and checked, in tests/deploy/seccomp.py.
const fn profile(daemon: Daemon) -> (&'static str, &'static str) {
    match daemon {
        Daemon::Ipamd => ("ipamd.json", include_str!("../../../../deploy/seccomp/ipamd.json")),
        Daemon::Policyd => ("policyd.json", include_str!("../../../../deploy/seccomp/policyd.json")),
        Daemon::Proxy => ("proxy.json", include_str!("../../../../deploy/seccomp/proxy.json")),
    }
}

/// Writes a daemon's profile below the kubelet's directory, in one step.
pub(super) fn write(directory: &Path, daemon: Daemon, say: &dyn Fn(&str)) -> Result<(), FileError> {
    let (name, content) = profile(daemon);
    let path = directory.join(DIRECTORY).join(name);
    let same = fs::read(&path).is_ok_and(|there| there == content.as_bytes());
    if !same {
        files::put(&path, content.as_bytes(), 0o644)?;
    }
    say(&format!("{} {}", path.display(), if same { "is as it should be" } else { "is in place" }));
    Ok(())
}

/// Removes all of them. What still runs has its profile in the kernel.
pub(super) fn remove(directory: &Path, say: &dyn Fn(&str)) -> Result<(), FileError> {
    let path = directory.join(DIRECTORY);
    if files::remove_all(&path)? {
        say(&format!("{} is gone", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_put_in_place_and_taken_away() {
        let directory = std::env::temp_dir().join(format!("sluice-seccomp-{}", std::process::id()));
        let said = std::cell::RefCell::new(Vec::new());
        let say = |text: &str| said.borrow_mut().push(text.to_owned());
        for daemon in Daemon::ALL {
            write(&directory, daemon, &say).unwrap();
            write(&directory, daemon, &say).unwrap();
        }
        let whole = fs::read_to_string(directory.join("sluice/proxy.json")).unwrap();
        let profile: serde_json::Value = serde_json::from_str(&whole).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(fs::read_dir(directory.join("sluice")).unwrap().count(), 3);
        remove(&directory, &say).unwrap();
        remove(&directory, &say).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir(&directory).unwrap();
        let ends = said.into_inner().iter().map(|text| text.split_once(' ').unwrap().1.to_owned()).collect::<Vec<_>>();
        let (new, same) = ("is in place", "is as it should be");
        assert_eq!(ends, [new, same, new, same, new, same, "is gone"]);
    }
}
