//! `sluice policy check`: what is wrong, doubtful or without effect in policies.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use sluice_policy_core::lint::{self, Checked, Document, Finding, Role, Severity};
use sluice_policy_core::manifest;

use super::Common;
use crate::exit::{DATA, FAILED};
use crate::files::{self, NoFiles};
use crate::paint::Paint;

/// Options of `sluice policy check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// A directory with the objects of the cluster that the policies are for (namespaces, pods, Services, other policies).
    /// Nothing is told of these objects; they show what the policies mean there.
    #[arg(long, value_name = "DIR")]
    cluster_dir: Option<PathBuf>,
}

/// Checks all files together.
pub(crate) fn main(options: &Options) -> ExitCode {
    let mut input = Input::default();
    for path in &options.common.files {
        input.files(path, files::at(path), Role::Checked);
    }
    if let Some(path) = &options.cluster_dir {
        input.files(path, files::in_directory(path), Role::Cluster);
    }
    let mut checked = lint::check(&input.documents);
    let unreadable = !input.unreadable.is_empty();
    let mut findings = input.unreadable;
    findings.append(&mut checked.findings);
    findings.sort_by_key(|finding| input.files.iter().position(|file| *file == finding.file));
    checked.findings = findings;
    let failed = checked.findings.iter().any(|finding| finding.id.severity() == Severity::Error) || checked.more > 0;
    let code = ExitCode::from(match (unreadable, failed) {
        (true, _) => DATA,
        (false, true) => FAILED,
        (false, false) => 0,
    });
    let out = io::stdout();
    let paint = Paint { colours: out.is_terminal() };
    let text = if options.common.json { format!("{}\n", as_json(&checked)) } else { for_people(&checked, paint) };
    let mut out = out.lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => code,
        // Whoever reads has seen enough; what was found still counts.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            let _closed = writeln!(io::stderr().lock(), "sluice: the result cannot be written: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// What is read.
#[derive(Debug, Default)]
struct Input {
    files: Vec<String>,
    documents: Vec<Document>,
    unreadable: Vec<Finding>,
}

impl Input {
    fn files(&mut self, path: &Path, found: Result<Vec<PathBuf>, NoFiles>, role: Role) {
        match found {
            Ok(found) => found.iter().for_each(|path| self.file(path, role)),
            Err(error) => self.unreadable(path, error.to_string(), error.hint),
        }
    }

    fn unreadable(&mut self, path: &Path, message: String, hint: &str) {
        let file = path.display().to_string();
        self.unreadable.push(Finding::unreadable(&file, 0, message, hint));
        self.files.push(file);
    }

    fn file(&mut self, path: &Path, role: Role) {
        let file = path.display().to_string();
        let bytes = match files::bytes(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                return self.unreadable(path, format!("the file cannot be read: {error}"), files::HINT);
            }
        };
        self.files.push(file.clone());
        match manifest::text(&bytes) {
            Err(error) => self.unreadable.push(Finding::of_manifest(&file, &error)),
            Ok(text) => {
                let manifest = manifest::read(text);
                self.unreadable.extend(manifest.errors.iter().map(|error| Finding::of_manifest(&file, error)));
                self.documents.extend(
                    manifest.documents.into_iter().map(|manifest::Document { value, line }| Document {
                        file: file.clone(),
                        line,
                        value,
                        role,
                    }),
                );
            }
        }
    }
}

fn count(checked: &Checked, severity: Severity) -> usize {
    checked.findings.iter().filter(|finding| finding.id.severity() == severity).count()
}

fn as_json(checked: &Checked) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "id": finding.id.as_str(),
            "severity": finding.id.severity().as_str(),
            "file": finding.file,
            "line": finding.line,
            "object": finding.object,
            "path": finding.path,
            "value": finding.value,
            "message": finding.message,
            "hint": finding.hint,
        })
    };
    json!({
        "findings": checked.findings.iter().map(finding).collect::<Vec<_>>(),
        "counts": {
            "error": count(checked, Severity::Error),
            "warning": count(checked, Severity::Warning),
            "info": count(checked, Severity::Info),
            "notTold": checked.more,
            "objects": checked.objects,
            "policies": checked.policies,
        },
    })
}

/// By file and object.
fn for_people(checked: &Checked, paint: Paint) -> String {
    let mut text = String::new();
    // A String takes everything.
    let _taken = write(&mut text, checked, paint);
    text
}

fn write(text: &mut String, checked: &Checked, paint: Paint) -> std::fmt::Result {
    for file in checked.findings.chunk_by(|one, next| one.file == next.file) {
        let Some(first) = file.first() else { continue };
        writeln!(text, "{}", paint.heading(&printable(&first.file)))?;
        for object in file.chunk_by(|one, next| (&one.object, one.line) == (&next.object, next.line)) {
            let Some(first) = object.first() else { continue };
            if !first.object.is_empty() {
                writeln!(text, "  {}  {}", printable(&first.object), paint.dim(&format!("line {}", first.line)))?;
            }
            for finding in object {
                let indent = if finding.object.is_empty() { "  " } else { "    " };
                self::finding(text, finding, indent, paint)?;
            }
        }
        writeln!(text)?;
    }
    let parts: Vec<String> = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Info, "note")]
        .into_iter()
        .map(|(severity, word)| (severity, count(checked, severity), word))
        .filter(|(_, count, _)| *count > 0)
        .map(|(severity, count, word)| coloured(severity, &counted(count, word), paint))
        .collect();
    let parts = if parts.is_empty() { paint.good("no findings") } else { parts.join(", ") };
    writeln!(text, "{}, {}: {parts}", counted(checked.objects, "object"), policies(checked.policies))?;
    if checked.more > 0 {
        writeln!(text, "{} are not told", counted(checked.more, "more finding"))?;
    }
    Ok(())
}

fn finding(text: &mut String, finding: &Finding, indent: &str, paint: Paint) -> std::fmt::Result {
    let severity = finding.id.severity();
    let mark = coloured(severity, severity.as_str(), paint);
    let path = if finding.path.is_empty() { String::new() } else { format!("{}: ", printable(&finding.path)) };
    writeln!(text, "{indent}{mark} {}  {path}{}", paint.dim(finding.id.as_str()), printable(&finding.message))?;
    if !finding.value.is_empty() && !finding.message.contains(&finding.value) {
        writeln!(text, "{indent}  {}", paint.dim(&format!("is:  {}", printable(&finding.value))))?;
    }
    writeln!(text, "{indent}  {}", paint.dim(&format!("do:  {}", printable(&finding.hint))))
}

fn coloured(severity: Severity, text: &str, paint: Paint) -> String {
    match severity {
        Severity::Error => paint.bad(text),
        Severity::Warning => paint.heading(text),
        Severity::Info => paint.dim(text),
    }
}

/// What may have come out of a file, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn policies(number: usize) -> String {
    if number == 1 { "1 policy".to_owned() } else { format!("{number} policies") }
}
