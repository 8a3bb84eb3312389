//! `sluice bundle`: what is needed to find out what is wrong with a node, in one archive. Values that may be secret are left out.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::Value;

use crate::daemons::Daemon;
use crate::doctor::{self, Facts};
use crate::exit;
use crate::paint::Paint;

/// Bytes of a file or an output that is taken.
const LIMIT: usize = 32 << 20;

/// Flows that are taken.
const FLOWS: &str = "4096";

/// Files that are taken as they are: none of them has a secret.
const FILES: [&str; 6] = [
    "/run/sluice/ipam.json",
    "/run/sluice/policy/checkpoint.json",
    "/proc/sys/kernel/osrelease",
    "/proc/net/softnet_stat",
    "/proc/meminfo",
    "/proc/loadavg",
];

/// What programs say of the host.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("ip-link", &["ip", "-d", "link"]),
    ("ip-addr", &["ip", "addr"]),
    ("ip-rule", &["ip", "rule"]),
    ("ip-route", &["ip", "route", "show", "table", "all"]),
    ("ip6-route", &["ip", "-6", "route", "show", "table", "all"]),
    ("nft", &["nft", "list", "ruleset"]),
    ("tc-filters", &["sh", "-c", TC_FILTERS]),
];

/// `tc` shows the filters of one link and hook at a time.
const TC_FILTERS: &str = "for link in /sys/class/net/*; do for hook in ingress egress; do echo \"${link##*/} $hook:\"; \
                          tc -s filter show dev \"${link##*/}\" $hook; done; done";

/// Parts of names whose values are left out.
const SECRET: [&str; 8] = ["secret", "token", "password", "passwd", "credential", "private", "accesskey", "access_key"];

/// Options of `sluice bundle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The archive; `-`: standard output.
    #[arg(short, long, value_name = "FILE", default_value = "sluice-bundle.tar")]
    output: PathBuf,
}

/// Writes it.
pub(crate) fn main(options: &Options) -> ExitCode {
    let told = |text: &str| {
        // A closed standard error is no reason for another status.
        let _closed = writeln!(io::stderr().lock(), "sluice bundle: {text}");
    };
    let standard = options.output.as_os_str() == "-";
    let beside = match (!standard).then(|| Beside::make(&options.output)).transpose() {
        Ok(beside) => beside,
        Err(error) => {
            told(&format!("{}: {error}", options.output.display()));
            return ExitCode::from(exit::DATA);
        }
    };
    let files = gather();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let written = match beside {
        None => archive(io::stdout().lock(), &files, now),
        Some(beside) => archive(&beside.file, &files, now).and_then(|()| beside.put(&options.output)),
    };
    match written {
        Ok(()) => {
            told(&format!(
                "{} files in {}; look through it before you give it to others",
                files.len(),
                options.output.display()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            told(&format!("{}: {error}", options.output.display()));
            ExitCode::from(exit::SOFTWARE)
        }
    }
}

/// A new file that nobody else can read, beside the one whose place it will have: what is there, a link of somebody else's or a file
/// that all may read, is replaced and not written to.
#[derive(Debug)]
struct Beside {
    file: File,
    path: PathBuf,
}

impl Beside {
    fn make(output: &Path) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let name = output.file_name().ok_or_else(|| wrong("it has no name of a file"))?;
        // Pipes, devices and directories are not replaced, nor are links to them, or to what a process has open: /dev/stdout is one,
        // and may be a file behind it.
        let is_none = output.metadata().is_ok_and(|there| !there.is_file());
        if is_none || std::fs::read_link(output).is_ok_and(|to| to.starts_with("/proc")) {
            return Err(wrong("it is there and is no file; `-` is the standard output"));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let path = output.with_file_name(hidden);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    /// Puts it there.
    fn put(self, output: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, output)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It is not there any more where it was put in its place.
        let _put = std::fs::remove_file(&self.path);
    }
}

/// A text whose URLs have no name and password (RFC 3986, 3.2.1); none, if they have none anyway.
fn without_user(text: &str) -> Option<String> {
    let mut parts = text.split("://");
    let mut without = parts.next()?.to_owned();
    let mut changed = false;
    for rest in parts {
        without.push_str("://");
        let authority = rest.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map_or(0, |(user, _)| user.len());
        if user > 0 {
            changed = true;
            without.push_str("...");
        }
        without.push_str(rest.get(user..).unwrap_or_default());
    }
    changed.then_some(without)
}

/// Flows without the queries of their URLs: these may have secrets.
fn without_queries(flows: &[u8]) -> Vec<u8> {
    let line = |line: &str| {
        let Ok(mut flow) = serde_json::from_str::<Value>(line) else { return format!("{line}\n") };
        if flow.pointer("/flow/l7/http").is_some() {
            for place in ["/flow/l7/http/url", "/flow/Summary"] {
                let Some(Value::String(text)) = flow.pointer_mut(place) else { continue };
                if let Some(without) = without_user(text) {
                    *text = without;
                }
                if let Some((before, query)) = text.split_once('?') {
                    let rest = query.find(' ').and_then(|at| query.get(at..)).unwrap_or_default();
                    *text = format!("{before}?...{rest}");
                }
            }
        }
        format!("{flow}\n")
    };
    String::from_utf8_lossy(flows).lines().map(line).collect::<String>().into_bytes()
}

/// All files, by name. What could not be had is there with the reason.
fn gather() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for daemon in Daemon::ALL {
        for page in daemon.pages() {
            let name = format!("{}{}.json", daemon.name(), page.replace("/v1/", "/"));
            let content = match daemon.page(page) {
                Ok(mut page) => {
                    redact(&mut page);
                    format!("{page:#}\n")
                }
                Err(why) => format!("{why}\n"),
            };
            files.push((name, content.into_bytes()));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        let findings = doctor::findings(&runtime.block_on(Facts::gather()));
        let text = doctor::text(&findings, true, Paint { colours: false });
        files.push(("doctor.txt".to_owned(), text.into_bytes()));
    }
    for (name, command) in PROGRAMS {
        files.push((format!("host/{name}.txt"), output(command)));
    }
    let flows = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
    if let Some(this) = flows {
        files.push((
            "flows.jsonl".to_owned(),
            without_queries(&output(&[&this, "observe", "--last", FLOWS, "-o", "jsonpb"])),
        ));
    }
    for path in FILES {
        let content = std::fs::read(path).unwrap_or_else(|error| format!("{error}\n").into_bytes());
        files.push((format!("files{path}"), limited(content)));
    }
    for entry in std::fs::read_dir("/etc/cni/net.d").into_iter().flatten().flatten() {
        let path = entry.path();
        let content = std::fs::read(&path).unwrap_or_else(|error| format!("{error}\n").into_bytes());
        let content = match serde_json::from_slice::<Value>(&content) {
            Ok(mut value) => {
                redact(&mut value);
                format!("{value:#}\n").into_bytes()
            }
            // What cannot be read cannot be looked through for secrets.
            Err(error) => format!("no JSON, and left out: {error}\n").into_bytes(),
        };
        files.push((format!("files{}", path.display()), limited(content)));
    }
    files
}

fn limited(mut content: Vec<u8>) -> Vec<u8> {
    content.truncate(LIMIT);
    content
}

/// What a program prints; what it complains of is behind it.
fn output(command: &[&str]) -> Vec<u8> {
    let Some((program, arguments)) = command.split_first() else { return Vec::new() };
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(mut output) => {
            output.stdout.truncate(LIMIT);
            output.stdout.extend(output.stderr);
            output.stdout
        }
        Err(error) => format!("{program}: {error}\n").into_bytes(),
    }
}

/// Leaves values out whose names say that they are secret, and of URLs who asks.
fn redact(value: &mut Value) {
    hide(value, false);
}

fn hide(value: &mut Value, secret: bool) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let name = name.to_ascii_lowercase();
                hide(value, secret || SECRET.iter().any(|part| name.contains(part)));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| hide(value, secret)),
        Value::Number(_) | Value::String(_) if secret => *value = Value::from("left out"),
        Value::String(text) => {
            if let Some(without) = without_user(text) {
                *text = without;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Writes a tar archive (POSIX.1-1988, ustar), in a directory of its own.
fn archive(mut to: impl Write, files: &[(String, Vec<u8>)], now: u64) -> io::Result<()> {
    let stamp = i64::try_from(now).ok().and_then(|now| Timestamp::from_second(now).ok()).unwrap_or_default();
    let directory = format!("sluice-bundle-{}", stamp.strftime("%Y%m%dT%H%M%SZ"));
    for (name, content) in files {
        let name = format!("{directory}/{}", name.trim_start_matches('/'));
        to.write_all(&header(&name, content.len(), now)?)?;
        to.write_all(content)?;
        let rest = (512 - content.len() % 512) % 512;
        to.write_all(&vec![0; rest])?;
    }
    to.write_all(&[0; 1024])?;
    to.flush()
}

fn header(name: &str, size: usize, now: u64) -> io::Result<[u8; 512]> {
    // Longer names are split at a slash into prefix and name.
    let at = if name.len() <= 100 {
        None
    } else {
        Some(name.match_indices('/').map(|(at, _)| at).find(|at| name.len() - at - 1 <= 100 && *at <= 155).ok_or_else(
            || io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: the name is too long for the archive")),
        )?)
    };
    let (prefix, name) = at.and_then(|at| Some((name.get(..at)?, name.get(at + 1..)?))).unwrap_or(("", name));
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| {
        if let Some(field) = header.get_mut(at..at + text.len()) {
            field.copy_from_slice(text.as_bytes());
        }
    };
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{now:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    put(345, prefix);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    Ok(header)
}

/// Where an archive is written in tests.
#[cfg(test)]
fn extracted(archive: &Path) -> std::process::Output {
    Command::new("tar").arg("-xOf").arg(archive).output().unwrap()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_archive_is_its_owners_and_is_written_over_nothing() {
        let directory = std::env::temp_dir().join(format!("sluice-bundle-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let [theirs, link] = ["theirs", "link"].map(|name| directory.join(name));
        std::fs::write(&theirs, "theirs").unwrap();
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        Beside::make(&link).unwrap().put(&link).unwrap();
        let mode =
            |path: &Path| std::os::unix::fs::PermissionsExt::mode(&path.symlink_metadata().unwrap().permissions());
        assert_eq!((mode(&link), std::fs::read_to_string(&theirs).unwrap()), (0o100_600, "theirs".to_owned()));
        drop(Beside::make(&theirs).unwrap());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
        assert!(Beside::make(&directory).is_err());
        for (name, to) in [("null", "/dev/null"), ("stdout", "/proc/self/fd/1"), ("there", ".")] {
            let link = directory.join(name);
            std::os::unix::fs::symlink(to, &link).unwrap();
            assert!(Beside::make(&link).is_err() && link.is_symlink(), "{to}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn flows_have_no_queries() {
        let flow =
            |url: &str, summary: &str| json!({"flow": {"l7": {"http": {"url": url}}, "Summary": summary}}).to_string();
        let text =
            format!("{}\nno JSON\n", flow("http://a/cb?access_token=x", "HTTP/1.1 GET http://a/cb?access_token=x 200"));
        let expected = format!("{}\nno JSON\n", flow("http://a/cb?...", "HTTP/1.1 GET http://a/cb?... 200"));
        assert_eq!(String::from_utf8(without_queries(text.as_bytes())).unwrap(), expected);
    }

    #[test]
    fn what_is_below_a_secret_name_and_each_url_is_left_out() {
        let mut page = json!({
            "secrets": {"a": "x", "deep": [{"b": 1, "c": null}]},
            "text": "http://one/ http://a:b@two/x@y, then https://c@three?d http://",
            "other": "b@c://d@/e",
        });
        redact(&mut page);
        let expected = json!({
            "secrets": {"a": "left out", "deep": [{"b": "left out", "c": null}]},
            "text": "http://one/ http://...@two/x@y, then https://...@three?d http://",
            "other": "b@c://...@/e",
        });
        assert_eq!(page, expected);
    }

    #[test]
    fn an_archive_is_read_by_tar_and_has_no_secret() {
        let mut page = json!({"AWS_SECRET_ACCESS_KEY": "hunter2", "node": {"token": 5, "name": "n"}, "list": [{"passwords": ["x"]}], "u": "http://a:b@c/d"});
        redact(&mut page);
        let expected = json!({"AWS_SECRET_ACCESS_KEY": "left out", "node": {"token": "left out", "name": "n"}, "list": [{"passwords": ["left out"]}], "u": "http://...@c/d"});
        assert_eq!(page, expected);
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(60));
        let files = [("a.txt".to_owned(), b"one\n".to_vec()), (long, vec![b'x'; 1000])];
        let path = std::env::temp_dir().join(format!("sluice-bundle-{}.tar", std::process::id()));
        archive(File::create(&path).unwrap(), &files, 1_700_000_000).unwrap();
        let output = extracted(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, [b"one\n".as_slice(), &[b'x'; 1000]].concat());
    }
}
