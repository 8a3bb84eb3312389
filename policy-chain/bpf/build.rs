//! Compiles the kernel's programs with clang, and writes the header that they share with `src/layout.rs`.
#![expect(clippy::disallowed_methods, reason = "Cargo tells a build script everything by the environment")]

use std::error::Error;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is asked for: the one without a number is what the machine prefers. 14 is the oldest that was tried.
const COMPILERS: [&str; 7] = ["clang", "clang-14", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19"];

#[repr(C, align(4))]
struct Address([u8; 16]);

macro_rules! constants {
    ($($(#[doc = $doc:expr])* $name:ident : $type:ty = $value:expr;)*) => {
        fn constants(out: &mut String) -> std::fmt::Result {
            $(writeln!(out, "#define {} {}u", stringify!($name), $value)?;)*
            Ok(())
        }
    };
}

macro_rules! numbers {
    ($($(#[doc = $doc:expr])* $name:ident $prefix:literal {
        $($(#[doc = $variant_doc:expr])* $variant:ident = $number:literal $text:literal,)*
    })*) => {
        fn numbers(out: &mut String) -> std::fmt::Result {
            $(
                writeln!(out, "\nenum {{")?;
                $(writeln!(out, "\t{}_{} = {},", $prefix, upper(stringify!($variant)), $number)?;)*
                writeln!(out, "}};")?;
            )*
            Ok(())
        }
    };
}

macro_rules! structs {
    ($($(#[doc = $doc:expr])* $name:ident {
        $($(#[doc = $field_doc:expr])* $field:ident : $type:ty,)*
    })*) => {
        $(
            #[repr(C)]
            struct $name {
                $($field: $type,)*
            }
        )*

        fn structs(out: &mut String) -> std::fmt::Result {
            $(
                let name = lower(stringify!($name));
                writeln!(out, "\nstruct {name} {{")?;
                $(writeln!(out, "\t{};", declaration(stringify!($type), stringify!($field)))?;)*
                writeln!(out, "}};")?;
                writeln!(out, "_Static_assert(sizeof(struct {name}) == {}, \"size\");", size_of::<$name>())?;
                $(
                    let (field, offset) = (stringify!($field), offset_of!($name, $field));
                    writeln!(out, "_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, \"offset\");")?;
                )*
            )*
            Ok(())
        }
    };
}

macro_rules! maps {
    ($($(#[doc = $doc:expr])* $name:ident : $kind:ident $(($key:ty, $value:ty))? $entries:literal $(, $flags:ident)?;)*) => {
        fn maps(out: &mut String) -> std::fmt::Result {
            $(
                writeln!(out, "\nstruct {{")?;
                writeln!(out, "\t__uint(type, BPF_MAP_TYPE_{});", map_type(stringify!($kind)))?;
                $(
                    writeln!(out, "\t__type(key, {});", c_type(stringify!($key)))?;
                    writeln!(out, "\t__type(value, {});", c_type(stringify!($value)))?;
                )?
                writeln!(out, "\t__uint(max_entries, {});", $entries)?;
                $(
                    if stringify!($flags) == "NO_PREALLOC" {
                        writeln!(out, "\t__uint(map_flags, BPF_F_NO_PREALLOC);")?;
                    }
                )?
                writeln!(out, "}} {} SEC(\".maps\");", stringify!($name))?;
            )*
            Ok(())
        }
    };
}

include!("src/layout/source.rs");

/// `OwnAddress` -> `own_address`.
fn lower(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

/// `NoProxy` -> `NO_PROXY`.
fn upper(name: &str) -> String {
    lower(name).to_ascii_uppercase()
}

fn map_type(kind: &str) -> &'static str {
    match kind {
        "Hash" => "HASH",
        "Lpm" => "LPM_TRIE",
        "LruHash" => "LRU_HASH",
        "PerCpuHash" => "PERCPU_HASH",
        "PerCpuArray" => "PERCPU_ARRAY",
        "Array" => "ARRAY",
        "SockMap" => "SOCKMAP",
        _ => "RINGBUF",
    }
}

fn c_type(name: &str) -> String {
    match name {
        "u8" | "u16" | "u32" | "u64" => format!("__{name}"),
        _ => format!("struct {}", lower(name)),
    }
}

/// `[u8; 2]`, `port` -> `__u8 port[2]`.
fn declaration(name: &str, field: &str) -> String {
    match name.trim_matches(['[', ']']).split_once(';') {
        Some((element, count)) => format!("{} {field}[{}]", c_type(element.trim()), count.trim()),
        None => format!("{} {field}", c_type(name)),
    }
}

fn header() -> Result<String, std::fmt::Error> {
    let mut out = "/* Made by build.rs of src/layout/source.rs. */\n#pragma once\n\n".to_owned();
    constants(&mut out)?;
    numbers(&mut out)?;
    writeln!(out, "\nstruct address {{\n\t__u32 words[4];\n}};")?;
    writeln!(out, "_Static_assert(sizeof(struct address) == {}, \"size\");", size_of::<Address>())?;
    structs(&mut out)?;
    maps(&mut out)?;
    Ok(out)
}

/// A clang that is there; `SLUICE_CLANG` names another.
fn compiler() -> Result<String, Box<dyn Error>> {
    if let Ok(named) = std::env::var("SLUICE_CLANG") {
        return Ok(named);
    }
    let works = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|run| run.status.success());
    COMPILERS.iter().find(works).map(|name| (*name).to_owned()).ok_or_else(|| {
        "no clang (14 or newer) is installed, which compiles the eBPF programs; \
         Debian: apt-get install clang-14 libbpf-dev linux-libc-dev"
            .into()
    })
}

/// Where Debian keeps `asm/types.h` of the machine.
fn machine_headers() -> Option<PathBuf> {
    let machine = std::env::var("CARGO_CFG_TARGET_ARCH").ok()?;
    Some(PathBuf::from(format!("/usr/include/{machine}-linux-gnu"))).filter(|path| path.is_dir())
}

/// Makes `NAME.o` of `c/NAME.c`.
fn compile(clang: &str, name: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let source = Path::new("c").join(name).with_extension("c");
    let object = out.join(name).with_extension("o");
    let mut command = Command::new(clang);
    command.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11"]);
    command.args(["-Wno-unused-parameter", "-fno-stack-protector", "-fno-jump-tables"]).arg("-I").arg(out);
    if let Some(headers) = machine_headers() {
        command.arg("-I").arg(headers);
    }
    // BTF names the sources of each line: not by where this machine has them.
    command.arg(format!("-ffile-prefix-map={}=out", out.display()));
    command.arg(format!("-ffile-prefix-map={}=policy-chain/bpf", std::env::var("CARGO_MANIFEST_DIR")?));
    let run = command.arg("-c").arg(&source).arg("-o").arg(&object).output();
    let run = run.map_err(|error| format!("{clang} cannot be run: {error}"))?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    let hint = if said.contains("file not found") {
        "\nheaders are missing; Debian: apt-get install libbpf-dev linux-libc-dev"
    } else {
        ""
    };
    Err(format!("{clang} cannot compile {}:\n{said}{hint}", source.display()).into())
}

/// `clang 14`, of `Debian clang version 14.0.6`.
fn name_of(clang: &str) -> Option<String> {
    let run = Command::new(clang).arg("--version").output().ok()?;
    let said = String::from_utf8(run.stdout).ok()?;
    let version = said.split_once("clang version ")?.1;
    Some(format!("clang {}", version.split('.').next()?))
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-changed=src/layout/source.rs");
    println!("cargo::rerun-if-env-changed=SLUICE_CLANG");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("layout.h"), header()?)?;
    let clang = compiler()?;
    compile(&clang, "gate", &out)?;
    compile(&clang, "local", &out)?;
    compile(&clang, "proxy", &out)?;
    println!("cargo::rustc-env=SLUICE_COMPILER={}", name_of(&clang).unwrap_or(clang));
    Ok(())
}
