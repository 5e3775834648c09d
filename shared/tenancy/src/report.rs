//! Telling the registry that this process lives and what tenants do in it.

use std::collections::VecDeque;
use std::time::Duration;

use crm_proto::registry::v1::{ReportActivityRequest, TenantCalls};
use tonic::{Code, Status};

use crate::registry::{RegistryClient, patiently};

/// How often a report is sent. The registry takes a process for dead that has
/// been silent for three times as long.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How often room for this process's sessions is asked for again.
const JOIN_EVERY: Duration = Duration::from_secs(1);
/// How many tenants a report has at most.
const TENANTS_PER_REPORT: usize = 1000;

/// Sends the reports of one process.
#[derive(Debug)]
pub(crate) struct Reporter {
    registry: RegistryClient,
    instance: String,
    session_budget: u32,
    /// Whether the registry counts these sessions: a process that was silent
    /// for too long may find that others have their place.
    has_room: bool,
    last_number: i64,
    /// Sent again as they are until the registry has taken them in, which it
    /// does once, by their number.
    unsent: VecDeque<ReportActivityRequest>,
}

impl Reporter {
    pub(crate) fn new(registry: RegistryClient, instance: String, session_budget: usize) -> Self {
        let session_budget = u32::try_from(session_budget).unwrap_or(u32::MAX);
        let unsent = VecDeque::new();
        Self { registry, instance, session_budget, has_room: true, last_number: 0, unsent }
    }

    /// Waits until the registry answers, and has room for the sessions of this
    /// process.
    pub(crate) async fn join(&mut self) -> Result<(), Status> {
        loop {
            let first = self.next(Vec::new());
            match patiently(async || self.registry.report_activity(first.clone()).await).await {
                Ok(()) => return Ok(()),
                // A process that this one replaces may be about to end.
                Err(status) if is_without_room(&status) => {
                    let reason = status.message();
                    tracing::warn!(reason, "waiting for room for the sessions of this process");
                    tokio::time::sleep(JOIN_EVERY).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// Sends what is new, or only a sign of life. What could not be sent is
    /// kept for the next time.
    pub(crate) async fn send(&mut self, news: impl FnOnce() -> Vec<TenantCalls>) {
        if self.unsent.is_empty() {
            let mut news = news();
            loop {
                let rest = news.split_off(news.len().min(TENANTS_PER_REPORT));
                let report = self.next(news);
                self.unsent.push_back(report);
                news = rest;
                if news.is_empty() {
                    break;
                }
            }
        }
        while let Some(report) = self.unsent.front() {
            let sent = self.registry.report_activity(report.clone()).await;
            self.note(&sent);
            if let Err(status) = sent {
                tracing::debug!(%status, "the report of activity is sent again later");
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// Says when the sessions of this process have lost their place, or have it
    /// again, and not at every report.
    fn note(&mut self, sent: &Result<(), Status>) {
        match sent {
            Ok(()) if !self.has_room => {
                tracing::info!("the sessions of this process have room again");
                self.has_room = true;
            }
            Err(status) if self.has_room && is_without_room(status) => {
                let reason = status.message();
                tracing::warn!(reason, "the sessions of this process have lost their room");
                self.has_room = false;
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Says that the process ends: its sessions are free for others.
    pub(crate) async fn leave(&mut self) {
        self.session_budget = 0;
        let last = self.next(Vec::new());
        if let Err(status) = self.registry.report_activity(last).await {
            tracing::debug!(%status, "the registry will notice by itself that this process ended");
        }
    }

    fn next(&mut self, tenants: Vec<TenantCalls>) -> ReportActivityRequest {
        // Numbers grow across starts of the process, too.
        let now = self.registry.clock().now().timestamp_micros();
        self.last_number = now.max(self.last_number + 1);
        ReportActivityRequest {
            instance: self.instance.clone(),
            report_number: self.last_number,
            session_budget: self.session_budget,
            tenants,
        }
    }
}

/// Whether the registry has no room for the sessions of a process.
fn is_without_room(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition
}
