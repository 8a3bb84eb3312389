//! A token bucket that learns from EC2's refusals, and the pause after failures. Both are pure: time and randomness are
//! arguments.

use std::time::Duration;

/// How far throttling can slow a bucket down: to 1/32 of its rate.
const SLOWEST: f64 = 1.0 / 32.0;

/// How much of the full rate each success gives back.
const RECOVERY: f64 = 1.0 / 16.0;

/// A token bucket. Tokens may be taken in advance: whoever does so waits until they are there.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    /// Most tokens that gather.
    size: f64,
    /// Tokens a second while EC2 does not throttle.
    full_rate: f64,
    /// Tokens a second now.
    rate: f64,
    /// Negative when tokens were taken in advance.
    tokens: f64,
    /// When `tokens` was right; time since an arbitrary start.
    at: Duration,
}

impl Bucket {
    /// A full bucket of `size` tokens that gains `rate` a second.
    pub(crate) fn new(size: u32, rate: u32) -> Self {
        let (size, rate) = (f64::from(size.max(1)), f64::from(rate.max(1)));
        Self { size, full_rate: rate, rate, tokens: size, at: Duration::ZERO }
    }

    fn advance(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = elapsed.mul_add(self.rate, self.tokens).min(self.size);
        self.at = self.at.max(now);
    }

    /// Takes one token: how long to wait before it may be used. None, and no token taken, when that is over `longest`.
    pub(crate) fn take(&mut self, now: Duration, longest: Duration) -> Option<Duration> {
        self.advance(now);
        let missing = (1.0 - self.tokens).max(0.0);
        let wait = Duration::try_from_secs_f64(missing / self.rate).unwrap_or(Duration::MAX);
        if wait > longest {
            return None;
        }
        self.tokens -= 1.0;
        Some(wait)
    }

    /// EC2 throttled a call: half the rate from now on, and what has gathered is worth nothing.
    pub(crate) fn throttled(&mut self, now: Duration) {
        self.advance(now);
        self.rate = (self.rate / 2.0).max(self.full_rate * SLOWEST);
        self.tokens = self.tokens.min(0.0);
    }

    /// A call was not throttled: a part of the rate comes back.
    pub(crate) fn succeeded(&mut self, now: Duration) {
        self.advance(now);
        self.rate = self.full_rate.mul_add(RECOVERY, self.rate).min(self.full_rate);
    }

    /// Tokens a second now.
    pub(crate) const fn rate(&self) -> f64 {
        self.rate
    }
}

/// Random numbers from a seed (SplitMix64, Steele and others, OOPSLA 2014). They spread calls in time; nothing secret
/// depends on them.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration between two, to the millisecond.
    pub(crate) fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let span = u64::try_from(to.saturating_sub(from).as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        from + Duration::from_millis(self.next() % span)
    }
}

/// Pauses after failures in a row, with decorrelated jitter: each is drawn between the first pause and three times the
/// one before ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    last: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, last: first }
    }

    /// The next pause.
    pub(crate) fn next(&mut self, random: &mut Random) -> Duration {
        self.last = random.between(self.first, self.last.saturating_mul(3)).min(self.longest);
        self.last
    }

    pub(crate) const fn reset(&mut self) {
        self.last = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = Bucket::new(3, 2);
        let waits: Vec<_> = (0..6).map(|_| bucket.take(at(0), LONG).unwrap().as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 500, 1000, 1500]);
        assert_eq!(bucket.take(at(1500), LONG), Some(at(500)));
        assert_eq!(bucket.take(at(60_000), LONG), Some(at(0)));
    }

    #[test]
    fn what_would_wait_too_long_takes_no_token() {
        let mut bucket = Bucket::new(1, 1);
        assert_eq!(bucket.take(at(0), at(500)), Some(at(0)));
        assert_eq!(bucket.take(at(0), at(500)), None);
        assert_eq!(bucket.take(at(600), at(500)), Some(at(400)));
    }

    #[test]
    fn throttling_halves_the_rate_and_success_brings_it_back() {
        let mut bucket = Bucket::new(8, 8);
        bucket.throttled(at(0));
        assert!((bucket.rate() - 4.0).abs() < 1e-9);
        assert_eq!(bucket.take(at(0), LONG), Some(at(250)), "what had gathered is gone");
        for _ in 0..20 {
            bucket.throttled(at(1000));
        }
        assert!((bucket.rate() - 0.25).abs() < 1e-9, "1/32 at the slowest");
        for _ in 0..16 {
            bucket.succeeded(at(2000));
        }
        assert!((bucket.rate() - 8.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn no_second_sees_more_calls_than_size_and_rate_allow(
            size in 1u32..20, rate in 1u32..20, gaps in proptest::collection::vec(0u64..400, 1..200)
        ) {
            let mut bucket = Bucket::new(size, rate);
            let (mut now, mut calls) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                calls.push(at(now) + bucket.take(at(now), LONG).unwrap());
            }
            for start in &calls {
                let within = calls.iter().filter(|t| **t >= *start && **t < *start + at(1000)).count();
                prop_assert!(within <= (size + rate + 1) as usize, "{within} calls in a second");
            }
        }

        #[test]
        fn pauses_stay_between_the_first_and_the_longest(seed: u64, steps in 1usize..50) {
            let (mut backoff, mut random) = (Backoff::new(at(200), at(30_000)), Random::new(seed));
            for _ in 0..steps {
                let pause = backoff.next(&mut random);
                prop_assert!(pause >= at(200) && pause <= at(30_000), "{pause:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next(&mut random) <= at(600));
        }
    }
}
