//! The table.

use crate::cpu::Usage;
use crate::measure::{Reading, Readings};

const HEAD: &str = "\
| what; peer | crm | peer | crm / peer | service CPU, µs a call: user + sys | PostgreSQL CPU, µs a call, crm : peer | client CPU, µs a call, crm : peer |
|---|---|---|---|---|---|---|
";

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    crm: String,
    peer: String,
    ratio: f64,
    crm_usage: Usage,
    peer_usage: Usage,
}

impl Row {
    /// A line that compares rates. The ratio is the median of the rounds' own.
    pub(crate) fn of_rates(what: String, readings: &Readings) -> Self {
        let pairs = readings.crm.iter().zip(&readings.peer);
        let ratios: Vec<f64> = pairs.map(|(crm, peer)| crm.rate / peer.rate).collect();
        Self {
            what,
            crm: rates(&readings.crm),
            peer: rates(&readings.peer),
            ratio: quantile(&ratios, 0.5),
            crm_usage: mean(&readings.crm),
            peer_usage: mean(&readings.peer),
        }
    }

    /// A line that compares the times of single calls by their medians, and
    /// shows an upper percentile too.
    pub(crate) fn of_times(what: &str, readings: &Readings, percentile: u32) -> Self {
        let (crm, peer) = (millis(&readings.crm), millis(&readings.peer));
        Self {
            what: what.to_owned(),
            crm: times(&crm, percentile),
            peer: times(&peer, percentile),
            ratio: quantile(&crm, 0.5) / quantile(&peer, 0.5),
            crm_usage: mean(&readings.crm),
            peer_usage: mean(&readings.peer),
        }
    }
}

/// All of it, in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    rows.iter().fold(HEAD.to_owned(), |table, row| table + &line(row))
}

fn line(row: &Row) -> String {
    let Row { what, crm, peer, ratio, crm_usage, peer_usage } = row;
    let Usage { service_user: user, service_system: system, .. } = crm_usage;
    let both =
        |part: fn(&Usage) -> f64| format!("{:.0} : {:.0}", part(crm_usage), part(peer_usage));
    let (postgres, client) = (both(|usage| usage.postgres), both(|usage| usage.client));
    let service = format!("{:.0} = {user:.0} + {system:.0}", user + system);
    format!("| {what} | {crm} | {peer} | {ratio:.2} | {service} | {postgres} | {client} |\n")
}

fn rates(readings: &[Reading]) -> String {
    let rates: Vec<f64> = readings.iter().map(|reading| reading.rate).collect();
    let [low, middle, high] = [0.0, 0.5, 1.0].map(|share| quantile(&rates, share));
    format!("{middle:.0}/s ({low:.0}–{high:.0})")
}

fn millis(readings: &[Reading]) -> Vec<f64> {
    readings.iter().map(|reading| 1000.0 / reading.rate).collect()
}

fn times(millis: &[f64], percentile: u32) -> String {
    let share = f64::from(percentile) / 100.0;
    let [low, middle, upper, high] = [0.0, 0.5, share, 1.0].map(|share| quantile(millis, share));
    format!("p50 {middle:.2} ms, p{percentile} {upper:.2} ({low:.2}–{high:.2})")
}

/// CPU time is counted in large ticks, which only a mean evens out.
fn mean(readings: &[Reading]) -> Usage {
    let mean = |part: fn(&Usage) -> f64| {
        let sum: f64 = readings.iter().map(|reading| part(&reading.usage)).sum();
        sum / readings.len() as f64
    };
    Usage {
        service_user: mean(|usage| usage.service_user),
        service_system: mean(|usage| usage.service_system),
        postgres: mean(|usage| usage.postgres),
        client: mean(|usage| usage.client),
    }
}

/// The value below which this share of the values lies (nearest rank).
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];

        let found = [0.0, 0.5, 0.95, 1.0].map(|share| quantile(&values, share));

        assert_eq!(found, [1.0, 3.0, 5.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
