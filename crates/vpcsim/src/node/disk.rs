//! A machine's file systems and first sysctls. Everything here runs on the machine's own thread.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Directories of the host that a machine sees below a writable layer of its own.
const LAYERED: [&str; 3] = ["etc", "opt", "var"];
/// Where runtimes look for conflists.
const CONFLISTS: &str = "/etc/cni/net.d";
/// Where runtimes and plugins look; made here so that none of them has to.
const DIRECTORIES: [&str; 5] = ["/run/netns", "/run/lock", CONFLISTS, "/opt/cni/bin", "/var/lib/cni"];

/// Mounts what a machine keeps over a reboot: its layers, which live in a tmpfs at `dir`.
pub(super) fn mount_layers(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    tmpfs(dir)?;
    for name in LAYERED {
        let (upper, work) = (dir.join(name).join("upper"), dir.join(name).join("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let target = Path::new("/").join(name);
        let options = format!("lowerdir={},upperdir={},workdir={}", target.display(), upper.display(), work.display());
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| context(&format!("overlay on {}", target.display()), &errno.into()))?;
    }
    // A machine has the conflists that it is given, and none of the host's.
    for conflist in std::fs::read_dir(CONFLISTS).into_iter().flatten() {
        let path = conflist?.path();
        std::fs::remove_file(&path).map_err(|error| context(&path.display().to_string(), &error))?;
    }
    Ok(())
}

/// Mounts what begins anew with every boot: `/run` and the bpffs.
pub(super) fn mount_volatile() -> io::Result<()> {
    let run = Path::new("/run");
    tmpfs(run)?;
    let var_run = Path::new("/var/run");
    if std::fs::symlink_metadata(var_run).is_ok_and(|found| !found.is_symlink()) {
        let bound = mount(Some(run), var_run, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>);
        bound.map_err(|errno| context("bind of /run on /var/run", &errno.into()))?;
    }
    for path in DIRECTORIES {
        std::fs::create_dir_all(path).map_err(|error| context(path, &error))?;
    }
    if let Err(errno) = mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), Some("mode=0700")) {
        // Needed by the policy half only, which says so itself.
        tracing::debug!(%errno, "no bpffs on this machine");
    }
    Ok(())
}

/// Takes the `/run` and the bpffs of the boot before away, with all that is mounted below.
pub(super) fn unmount_volatile() -> io::Result<()> {
    for path in ["/run", "/sys/fs/bpf"] {
        match umount2(path, MntFlags::MNT_DETACH) {
            // There was no bpffs to mount.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(context(path, &errno.into())),
        }
    }
    Ok(())
}

fn tmpfs(target: &Path) -> io::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .map_err(|errno| context(&format!("tmpfs on {}", target.display()), &errno.into()))
}

fn context(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// As the EKS images are shipped: they forward, and check the source of packets strictly (so what a CNI leaves out of
/// its own sysctls shows).
pub(super) fn boot_sysctls() -> io::Result<()> {
    for (key, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "1")] {
        let path = Path::new("/proc/sys/net/ipv4").join(key);
        std::fs::write(&path, value).map_err(|error| context(&path.display().to_string(), &error))?;
    }
    Ok(())
}
