//! Hostile input for parsers: a corpus, changed as its grammar would have it, with a look at what came of it.
//!
//! A target is a test. It names a directory with a corpus and a function that takes octets, which may fail but must not
//! panic, must be quick, and must hold no more memory than its input justifies; what else has to hold it asserts itself. It
//! returns the [`Shape`] of what happened, and an input of a shape that is new joins the corpus for the rest of the run.
//! That takes the place of a sanitizer's coverage, which needs another compiler.
//!
//! ```no_run
//! # #[global_allocator] static ALLOCATOR: sluice_fuzz::Counting = sluice_fuzz::Counting;
//! use sluice_fuzz::{Grammar, Shape, Target};
//! let target = Target { name: "number", corpus: "tests/corpus/number".as_ref(), grammar: Grammar::Text, words: &["0x", "-"] };
//! target.run(|octets| Shape::of(&std::str::from_utf8(octets).map(|text| text.parse::<u8>().map(drop))));
//! ```
//!
//! | variable | what it sets |
//! |---|---|
//! | `SLUICE_FUZZ_SECONDS` | seconds that each target has, shared by all processors; without it a fixed number of cases is tried, the same at every run on one thread |
//! | `SLUICE_FUZZ_INPUT` | a file, tried alone |
//! | `SLUICE_FUZZ_KEEP` | inputs of new shapes are written into the corpus |
#![deny(unsafe_op_in_unsafe_fn)]

mod cost;
mod mutate;
mod random;
mod shape;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use cost::{Counting, held};
pub use random::Random;
pub use shape::Shape;

use cost::{Cost, cost};
use mutate::Pool;

/// The longest input, in octets.
const LONGEST_INPUT: usize = 64 << 10;
/// The most inputs that are kept beside the corpus.
const MOST_KEPT: usize = 4096;
/// Cases of a run without a time.
const CASES: u64 = if cfg!(debug_assertions) { 1_000 } else { 5_000 };
/// How long a case may take on a processor: thousands of times what most take.
const LONGEST_CASE: Duration = if cfg!(debug_assertions) { Duration::from_secs(10) } else { Duration::from_secs(1) };
/// Octets that a case may hold whatever its input, and for each octet of it.
const MEMORY: (usize, usize) = (4 << 20, 512);

/// How inputs are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// Words between punctuation: JSON, YAML, forms, heads of HTTP.
    Text,
    /// Octets with lengths before them: TLS, DNS.
    Octets,
}

/// What is tried.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its name, for what is printed.
    pub name: &'a str,
    /// A directory with a file for each input to begin with. Each is tried as it stands, too.
    pub corpus: &'a Path,
    /// How inputs are changed.
    pub grammar: Grammar,
    /// Words that mean something to the target.
    pub words: &'a [&'a str],
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
enum Until {
    Cases(u64),
    Time(Instant),
}

/// What all threads of a run share.
struct Run<'a> {
    target: &'a Target<'a>,
    until: Until,
    next: AtomicU64,
    shapes: Mutex<BTreeSet<Shape>>,
    pool: RwLock<Pool>,
    slowest: Mutex<(Cost, usize)>,
    keep: bool,
}

fn setting(name: &str) -> Option<String> {
    std::env::var_os(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
}

impl Target<'_> {
    /// Tries inputs until the run is over.
    ///
    /// # Panics
    /// When the target panics, is too slow or holds too much; the input that did it is written to a file, which is named.
    /// When the corpus cannot be read or is empty.
    #[expect(clippy::panic, reason = "it is a test that fails")]
    #[expect(clippy::print_stdout, reason = "a test tells what it tried")]
    pub fn run(&self, case: impl Fn(&[u8]) -> Shape + Sync) {
        if let Some(path) = setting("SLUICE_FUZZ_INPUT") {
            let input = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            println!("{}: {:?}", self.name, case(&input));
            return;
        }
        let seeds = self.seeds();
        assert!(!seeds.is_empty(), "{} has no corpus in {}", self.name, self.corpus.display());
        let seconds = setting("SLUICE_FUZZ_SECONDS").map(|text| match text.parse::<u32>() {
            Ok(seconds) => seconds,
            Err(error) => panic!("SLUICE_FUZZ_SECONDS={text:?}: {error}"),
        });
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get().min(64));
        let (threads, until) = match seconds {
            None => (1, Until::Cases(CASES)),
            Some(seconds) => {
                let share = Duration::from_secs(u64::from(seconds)) / u32::try_from(processors).unwrap_or(1);
                (processors, Until::Time(Instant::now() + share))
            }
        };
        let run = Run {
            target: self,
            until,
            next: AtomicU64::new(0),
            shapes: Mutex::default(),
            pool: RwLock::new(Pool::new(&seeds, self.words)),
            slowest: Mutex::default(),
            keep: setting("SLUICE_FUZZ_KEEP").is_some(),
        };
        for seed in &seeds {
            // Kept already; its shape is no news.
            run.shapes().insert(run.tried(seed, &case));
        }
        std::thread::scope(|scope| {
            let working: Vec<_> = (0..threads).map(|_| scope.spawn(|| run.work(&case))).collect();
            for thread in working {
                assert!(thread.join().is_ok(), "{} has failed: see above", self.name);
            }
        });
        let (cost, length) = *run.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        println!(
            "{}: {} cases from {} seeds, {} shapes; the slowest took {} us on {length} octets",
            self.name,
            run.next.load(Ordering::Relaxed),
            seeds.len(),
            run.shapes().len(),
            cost.time.as_micros(),
        );
    }

    #[expect(clippy::panic, reason = "it is a test that fails")]
    fn seeds(&self) -> Vec<Vec<u8>> {
        let unreadable = |error: std::io::Error| -> ! { panic!("the corpus in {}: {error}", self.corpus.display()) };
        let listed = std::fs::read_dir(self.corpus).unwrap_or_else(|error| unreadable(error));
        let mut paths: Vec<PathBuf> =
            listed.map(|entry| entry.unwrap_or_else(|error| unreadable(error)).path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap_or_else(|error| unreadable(error))).collect()
    }
}

impl Run<'_> {
    fn shapes(&self) -> std::sync::MutexGuard<'_, BTreeSet<Shape>> {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, case: &impl Fn(&[u8]) -> Shape) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let is_over = match self.until {
                Until::Cases(cases) => number >= cases,
                Until::Time(end) => Instant::now() >= end,
            };
            if is_over {
                self.next.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let mut random = Random::new(number);
            let input =
                self.pool.read().unwrap_or_else(PoisonError::into_inner).input(self.target.grammar, &mut random);
            let shape = self.tried(&input, case);
            let is_new = self.shapes().insert(shape);
            if is_new {
                if self.keep {
                    drop(std::fs::write(self.target.corpus.join(file_name(&input)), &input));
                }
                self.pool.write().unwrap_or_else(PoisonError::into_inner).keep(input);
            }
        }
    }

    /// Tries one input, and fails if it does harm.
    #[expect(clippy::panic, reason = "it is a test that fails")]
    fn tried(&self, input: &[u8], case: &impl Fn(&[u8]) -> Shape) -> Shape {
        let fails = |why: &str| -> ! {
            let path = std::env::temp_dir().join(format!("{}-{}", self.target.name, file_name(input)));
            let kept =
                std::fs::write(&path, input).map_or_else(|error| error.to_string(), |()| path.display().to_string());
            let shown: String = String::from_utf8_lossy(input).chars().take(2000).collect();
            panic!(
                "{}: {why}. The input, which belongs into {}: {kept}\n{shown:?}",
                self.target.name,
                self.target.corpus.display()
            );
        };
        let Ok((shape, cost)) = catch_unwind(AssertUnwindSafe(|| cost(|| case(input)))) else {
            fails("a panic, told above")
        };
        if cost.time > LONGEST_CASE {
            fails(&format!("it took {:?} on a processor", cost.time));
        }
        if cost.octets > MEMORY.0 + MEMORY.1 * input.len() {
            fails(&format!("it held {} octets for {}", cost.octets, input.len()));
        }
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        if cost.time > slowest.0.time {
            *slowest = (cost, input.len());
        }
        shape
    }
}

/// A name that tells inputs apart.
fn file_name(input: &[u8]) -> String {
    format!("{:016x}", shape::hash(input))
}

#[cfg(test)]
mod tests;
