//! Hostile scenes.

use sluice_fuzz::{Counting, Grammar, Shape, Target};

use super::{Scene, SceneError};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn fuzz_scene() {
    const WORDS: &[&str] = &[
        "vpcs:",
        "subnets:",
        "instances:",
        "cidr:",
        "cidrs:",
        "peerings:",
        "internet_hosts:",
        "time_scale:",
        "- ",
        ": ",
        "&a ",
        "*a",
        "<<: *a",
        "!!binary ",
        "|\n",
        "10.0.0.0/16",
        "2001:db8::/56",
        "m5.large",
        "1e309",
        ".inf",
        ".nan",
        "---\n",
        "\u{85}",
    ];
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/scene");
    Target { name: "scene", corpus: corpus.as_ref(), grammar: Grammar::Text, words: WORDS }.run(|octets| {
        let text = String::from_utf8_lossy(octets);
        match text.parse::<Scene>() {
            Ok(scene) => {
                Shape::of(&(scene.vpcs.len().min(3), scene.instances.len().min(4), scene.peerings.len().min(2)))
            }
            Err(SceneError::Invalid(faults)) => faults.iter().take(3).map(Shape::said).collect(),
            Err(error) => Shape::said(&error),
        }
    });
}
