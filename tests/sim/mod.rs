//! A seeded whole-cluster simulation: the real engines and controllers, an API in memory, a kubelet of a few lines.
//!
//! Each controller has a world of its own that lags behind at random; actions are carried out one by one in random order;
//! replies are lost before or after they landed; controllers crash and start again; users and pods misbehave. Invariants
//! hold after every write ([`api`]); after the storm comes calm, in which everything has to settle. Time is simulated.
//! `SIM_SEEDS` sets how many seeds run, `SIM_SEED` runs one. A failure prints its seed.

mod api;
mod cluster;

use cluster::Cluster;

/// Few enough for every run of the suite; more with `SIM_SEEDS`.
fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(one) => vec![one],
        None => (0..number("SIM_SEEDS").unwrap_or(60)).collect(),
    }
}

#[test]
fn storms_break_no_invariant_and_calm_settles_everything() {
    let seeds = seeds();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let mine: Vec<u64> =
                    seeds.iter().copied().filter(|seed| *seed as usize % threads == n || seeds.len() == 1 && n == 0).collect();
                scope.spawn(move || {
                    mine.into_iter()
                        .filter_map(|seed| Cluster::new(seed).run().err().map(|why| format!("SIM_SEED={seed}: {why}")))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().expect("a simulation panicked")).collect()
    });
    assert!(failures.is_empty(), "{} of {} seeds failed:\n{}", failures.len(), seeds.len(), failures[..failures.len().min(10)].join("\n"));
}
