use super::*;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn target<'a>(name: &'a str, corpus: &'a Path) -> Target<'a> {
    Target { name, corpus, grammar: Grammar::Text, words: &["deep"] }
}

/// A directory with one seed.
struct Corpus(PathBuf);

impl Corpus {
    fn new(name: &str, seed: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-fuzz-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("seed"), seed).unwrap();
        Self(path)
    }
}

impl Drop for Corpus {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn fails(name: &str, seed: &str, case: impl Fn(&[u8]) -> Shape + Sync) -> bool {
    let corpus = Corpus::new(name, seed);
    catch_unwind(AssertUnwindSafe(|| target(name, &corpus.0).run(case))).is_err()
}

#[test]
fn what_does_no_harm_passes() {
    assert!(!fails("harmless", "a: 1", |octets| Shape::of(&octets.len())));
}

#[test]
fn a_panic_behind_three_steps_is_found_because_each_is_of_a_new_shape() {
    let found = fails("steps", "a: 1", |octets| {
        let text = String::from_utf8_lossy(octets);
        let steps = (text.contains("deep"), text.contains("65536"), text.contains("%2F"));
        assert!(steps != (true, true, true), "all three");
        Shape::of(&steps)
    });
    assert!(found);
}

#[test]
fn memory_beyond_what_the_input_justifies_is_found() {
    let found = fails("memory", "1 deep", |octets| {
        let room: Vec<u8> = Vec::with_capacity(if octets.contains(&b'9') { 64 << 20 } else { 16 });
        Shape::of(&room.capacity().min(17))
    });
    assert!(found);
}

#[test]
fn a_shape_is_what_happened_and_not_to_whom() {
    assert_eq!(Shape::of(&Err::<(), _>("one")), Shape::of(&Err::<(), _>("an\"other")));
    assert_eq!(Shape::of(&Some(17)), Shape::of(&Some(4)));
    assert_ne!(Shape::of(&Some(17)), Shape::of(&None::<u8>));
    assert_ne!(Shape::of(&vec![1, 2]), Shape::of(&vec![1]));
    assert_ne!(Shape::said(&"too long"), Shape::said(&"too short"));
    assert_eq!(Shape::said(&"\"a\" has 3"), Shape::said(&"\"b\" has 17"));
}
