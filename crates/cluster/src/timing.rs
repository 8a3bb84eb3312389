//! Pauses and deadlines.

use std::time::Duration;

/// How a daemon goes about it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of this node, as the API has it.
    pub node: String,
    /// Makes this process's pauses others than those of another one.
    pub seed: u64,
    /// Pauses and deadlines.
    pub timing: Timing,
}

/// Pauses and deadlines.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The shortest pause after a failure.
    pub least: Duration,
    /// The longest one.
    pub most: Duration,
    /// How long a part of an answer may take.
    pub patience: Duration,
    /// How long a watch is asked to last, at least; at most twice as long.
    pub watch: Duration,
    /// How long a watch may be silent before another one takes its place. Servers send a bookmark a minute.
    pub idle: Duration,
    /// After how long of silence on all watches the server is asked whether it is there.
    pub pulse: Duration,
    /// How long its answer may take, and how long it is until it is asked again, at most, while it does not answer: so long
    /// after a server is back, everything goes on.
    pub answer: Duration,
    /// A watch that ends sooner is not begun again at once.
    pub quick: Duration,
    /// How often it is asked which kinds are served.
    pub discover: Duration,
    /// For how long a kind must be missing until it is gone.
    pub gone_after: Duration,
    /// How long the second node waits before it says on a policy what the first one did not. The third and fourth wait twice
    /// as long, the next four three times, and so on.
    pub status: Duration,
    /// How often the count of an Event is told.
    pub count: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            least: Duration::from_millis(200),
            most: Duration::from_secs(30),
            patience: Duration::from_secs(30),
            watch: Duration::from_secs(300),
            idle: Duration::from_secs(150),
            pulse: Duration::from_secs(20),
            answer: Duration::from_secs(3),
            quick: Duration::from_secs(1),
            discover: Duration::from_secs(300),
            gone_after: Duration::from_secs(5),
            status: Duration::from_secs(5),
            count: Duration::from_secs(30),
        }
    }
}
