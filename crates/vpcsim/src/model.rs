//! A VPC as EC2 keeps it, without packets and without a clock: who owns which address, what is attached where, which
//! limits hold, and what a caller of the API is told.
//!
//! The model is pure. Time is an argument, randomness comes from a seed, and a call answers with its result and with
//! how long EC2 would have taken over it: a server sleeps that long, a test in virtual time adds it to its clock. The
//! effect of a call is there at once; what a caller sees of it later is decided by the lags in [`Settings`].
//!
//! - [`Model::call`] is the EC2 API ([`api`]).
//! - [`Model::state`] is the truth, for the fabric, the metadata service and tests ([`state`]).
//! - The scene calls ([`Model::add_vpc`] and its neighbours) make what EC2 has calls for that no part of Sluice uses:
//!   gateways, route tables, peerings.
//!
//! One model is one account in one region.

pub mod address;
pub mod api;
pub mod behaviour;
mod describe;
mod error;
mod filter;
pub mod id;
mod instance;
mod interface;
mod log;
mod network;
pub mod random;
mod scene;
pub mod state;
mod summary;
mod tags;
#[cfg(test)]
mod tests;
mod token;

use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sluice_contract::id::InvalidId;

pub use api::{Action, Reply, Request};
pub use behaviour::{Fault, FaultEffect, Settings};
pub use error::ApiError;
pub use id::{InternetGatewayId, NatGatewayId, PeeringId, RouteTableId};
pub use log::{CallLog, CallRecord};
pub use scene::{SceneEni, SceneInstance};
pub use state::State;

use behaviour::Level;
use random::Random;
use token::ClientTokens;

/// States kept for those who see late; when calls come so fast that this is not enough, they see less late.
const KEPT_STATES: usize = 1024;
/// What stands for the metadata service in faults and counts, where EC2's actions have their names.
pub const IMDS: &str = "Imds";
/// Faults that can be set at once.
pub const MOST_FAULTS: usize = 100;

/// One account in one region.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    random: Random,
    now: Duration,
    state: Arc<State>,
    version: u64,
    /// Past states, each with the time since when it held; the last one holds now.
    history: VecDeque<(Duration, Arc<State>)>,
    levels: BTreeMap<Action, Level>,
    faults: Vec<Fault>,
    tokens: ClientTokens,
    log: CallLog,
}

/// What comes of a call.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the caller is told.
    pub result: Result<Reply, CallFailure>,
    /// How long the answer takes.
    pub answer_after: Duration,
    /// The time that the answer tells of: before the call's own, when Describe calls see late.
    pub seen_at: Duration,
}

/// Why a call has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    /// EC2 says no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Nothing is ever heard; the call may have had its effect.
    #[error("no answer came")]
    NoAnswer,
}

impl Model {
    /// An account with nothing in it.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let state = Arc::new(State::default());
        Self {
            random: Random::new(settings.seed),
            settings,
            now: Duration::ZERO,
            history: VecDeque::from([(Duration::ZERO, Arc::clone(&state))]),
            state,
            version: 0,
            levels: BTreeMap::new(),
            faults: Vec::new(),
            tokens: ClientTokens::default(),
            log: CallLog::default(),
        }
    }

    /// How it behaves.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes how it behaves from now on.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// What is true as of the last call or [`Self::settle`].
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The same, to keep.
    #[must_use]
    pub fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// A number that grows with every change of [`Self::state`]. Links also come by time alone: see
    /// [`Self::next_change`].
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The log of calls.
    #[must_use]
    pub fn log(&self) -> &CallLog {
        &self.log
    }

    /// Faults that are not spent.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Sets a fault. It strikes after those set before it; a call is struck by one at most.
    ///
    /// # Errors
    /// `InvalidParameterValue` when [`MOST_FAULTS`] are set already, or the action does not exist.
    pub fn add_fault(&mut self, fault: Fault) -> Result<(), ApiError> {
        if self.faults.len() >= MOST_FAULTS {
            return Err(ApiError::invalid_value(format!("there are {MOST_FAULTS} faults already")));
        }
        if let Some(name) = fault.action.as_deref().filter(|name| *name != IMDS) {
            Action::from_str(name).map_err(|error| ApiError::invalid_value(error.to_string()))?;
        }
        self.faults.push(fault);
        Ok(())
    }

    /// Takes all faults away.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Lets time pass: detaches that are over free their ENIs, instances that ended lose theirs. [`Self::call`] does it
    /// itself. A `now` before the last one counts as the last one.
    pub fn settle(&mut self, now: Duration) {
        // One by one, at the time of each: who sees late must see them as late as everything else.
        while let Some(due) = interface::next_due(&self.state).filter(|due| *due <= now) {
            self.now = self.now.max(due);
            interface::settle(Arc::make_mut(&mut self.state), self.now);
            self.changed();
        }
        self.now = self.now.max(now);
    }

    /// The next time after `now` at which a link comes, a link goes, or an instance changes its state.
    #[must_use]
    pub fn next_change(&self, now: Duration) -> Option<Duration> {
        let links = self.state.enis.values().filter_map(|eni| eni.attachment.as_ref());
        let instances = self.state.instances.values();
        links
            .flat_map(|attachment| [Some(attachment.link_at), attachment.detached_at])
            .chain(instances.flat_map(|instance| [Some(instance.running_at), instance.terminated_at]))
            .flatten()
            .filter(|time| *time > now)
            .min()
    }

    /// What was true `lag` before `now`, and the time that this is.
    #[must_use]
    pub fn seen(&self, now: Duration, lag: Duration) -> (Arc<State>, Duration) {
        let at = now.saturating_sub(lag);
        let past = self.history.iter().rev().find(|(since, _)| *since <= at).or_else(|| self.history.front());
        match past {
            Some((since, state)) => (Arc::clone(state), at.max(*since)),
            None => (Arc::clone(&self.state), now),
        }
    }

    /// How far the metadata service sees into the past, scaled.
    #[must_use]
    pub fn imds_lag(&self) -> Duration {
        self.settings.scaled(self.settings.imds_lag)
    }

    /// A call of the EC2 API by nobody in particular.
    pub fn call(&mut self, request: impl Into<Request>, now: Duration) -> Outcome {
        self.call_from("", request, now)
    }

    /// A call of the EC2 API; `caller` is for the log.
    pub fn call_from(&mut self, caller: &str, request: impl Into<Request>, now: Duration) -> Outcome {
        let request = request.into();
        let action = request.action();
        self.settle(now);
        let now = self.now;
        let mut answer_after = self.settings.draw(self.settings.answer_span(action), &mut self.random);
        let mut seen_at = now;
        let result = if !self.admit(action, now) {
            answer_after = answer_after.checked_div(4).unwrap_or_default();
            Err(ApiError::throttled().into())
        } else {
            match self.strike(action.as_str()) {
                None => self.perform(&request, &request, now, &mut seen_at).map_err(CallFailure::from),
                Some(FaultEffect::Slow { millis }) => {
                    answer_after = answer_after.saturating_add(Duration::from_millis(millis));
                    self.perform(&request, &request, now, &mut seen_at).map_err(CallFailure::from)
                }
                Some(FaultEffect::Error { code, message, status }) => {
                    Err(ApiError::with_status(code, message, status.unwrap_or(400)).into())
                }
                Some(FaultEffect::TimeoutBeforeEffect) => Err(CallFailure::NoAnswer),
                Some(FaultEffect::TimeoutAfterEffect) => match self.perform(&request, &request, now, &mut seen_at) {
                    Ok(_) | Err(_) => Err(CallFailure::NoAnswer),
                },
                Some(FaultEffect::PartialEffect) => {
                    match self.perform(&request.halved(), &request, now, &mut seen_at) {
                        Ok(_) => Err(ApiError::internal("An internal error has occurred").into()),
                        Err(error) => Err(error.into()),
                    }
                }
            }
        };
        let outcome = match &result {
            Ok(_) => "ok",
            Err(CallFailure::Api(error)) => &error.code,
            Err(CallFailure::NoAnswer) => "no-answer",
        };
        self.log.add(now, caller, action.as_str(), &request.summary(), outcome, answer_after);
        Outcome { result, answer_after, seen_at }
    }

    /// Puts a call in the log that never became a [`Request`]: an unknown action, or parameters that make no sense.
    pub fn record_refused(&mut self, caller: &str, action: &str, error: &ApiError, now: Duration) {
        self.settle(now);
        self.log.add(self.now, caller, action, "", &error.code, Duration::ZERO);
    }

    fn admit(&mut self, action: Action, now: Duration) -> bool {
        let bucket = self.settings.bucket(action);
        !self.settings.throttle
            || self.levels.entry(action).or_insert_with(|| Level::full(bucket, now)).take(bucket, now)
    }

    /// A request to the metadata service: it is counted, and a fault that names [`IMDS`] may strike it.
    pub fn imds_asked(&mut self) -> Option<FaultEffect> {
        self.log.count(IMDS);
        self.strike(IMDS)
    }

    fn strike(&mut self, action: &str) -> Option<FaultEffect> {
        let random = &mut self.random;
        let position = self.faults.iter().position(|fault| {
            fault.action.as_deref().map_or(action != IMDS, |name| name == action)
                && fault.of_million.is_none_or(|share| random.happens(share))
        })?;
        let fault = self.faults.get_mut(position)?;
        let effect = fault.effect.clone();
        if let Some(count) = &mut fault.count {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.faults.remove(position);
            }
        }
        Some(effect)
    }

    /// Does `request`, which is `asked` unless a fault cut it down.
    fn perform(
        &mut self,
        request: &Request,
        asked: &Request,
        now: Duration,
        seen_at: &mut Duration,
    ) -> Result<Reply, ApiError> {
        if request.action().is_describe() {
            let (seen, at) = self.seen(now, self.settings.scaled(self.settings.describe_lag));
            *seen_at = at;
            return describe::describe(&seen, &self.settings, request, at);
        }
        if let Some(reply) = self.tokens.replay(asked, &self.state, now)? {
            return Ok(reply);
        }
        let reply = self.edit(|edit| edit.apply(request))?;
        self.tokens.keep(asked, &reply, now);
        Ok(reply)
    }

    /// Runs `change`; where it fails nothing has changed.
    fn edit<T>(&mut self, change: impl FnOnce(&mut Edit<'_>) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let before = Arc::clone(&self.state);
        let mut edit = Edit {
            state: Arc::make_mut(&mut self.state),
            random: &mut self.random,
            settings: &self.settings,
            now: self.now,
        };
        match change(&mut edit) {
            Ok(value) => {
                self.changed();
                Ok(value)
            }
            Err(error) => {
                self.state = before;
                Err(error)
            }
        }
    }

    fn changed(&mut self) {
        self.version = self.version.saturating_add(1);
        let current = (self.now, Arc::clone(&self.state));
        match self.history.back_mut() {
            Some(last) if last.0 == self.now => *last = current,
            _ => self.history.push_back(current),
        }
        let lag = self.settings.scaled(self.settings.describe_lag.max(self.settings.imds_lag));
        let oldest = self.now.saturating_sub(lag);
        while self.history.len() > KEPT_STATES || self.history.get(1).is_some_and(|(since, _)| *since <= oldest) {
            self.history.pop_front();
        }
    }
}

/// A change in the making: the state, and what is needed to change it.
struct Edit<'a> {
    state: &'a mut State,
    random: &'a mut Random,
    settings: &'a Settings,
    now: Duration,
}

impl Edit<'_> {
    fn apply(&mut self, request: &Request) -> Result<Reply, ApiError> {
        match request {
            Request::AssignIpv6Addresses(request) => self.assign_ipv6(request),
            Request::AssignPrivateIpAddresses(request) => self.assign_ipv4(request),
            Request::AttachNetworkInterface(request) => self.attach(request),
            Request::AuthorizeSecurityGroupEgress(request) => {
                self.authorize(&request.group, &request.permissions, network::Direction::Egress)
            }
            Request::AuthorizeSecurityGroupIngress(request) => {
                self.authorize(&request.group, &request.permissions, network::Direction::Ingress)
            }
            Request::CreateNetworkInterface(request) => self.create_interface(request),
            Request::CreateSecurityGroup(request) => self.create_security_group(request),
            Request::CreateSubnet(request) => self.create_subnet(request),
            Request::CreateTags(request) => self.create_tags(request),
            Request::CreateVpc(request) => self.create_vpc(request),
            Request::DeleteNetworkInterface(request) => self.delete_interface(&request.eni),
            Request::DeleteTags(request) => self.delete_tags(request),
            Request::DetachNetworkInterface(request) => self.detach(request),
            Request::ModifyNetworkInterfaceAttribute(request) => self.modify_interface(request),
            Request::RevokeSecurityGroupEgress(request) => {
                self.revoke(&request.group, &request.permissions, network::Direction::Egress)
            }
            Request::RevokeSecurityGroupIngress(request) => {
                self.revoke(&request.group, &request.permissions, network::Direction::Ingress)
            }
            Request::RunInstances(request) => self.run_instances(request),
            Request::TerminateInstances(request) => self.terminate_instances(request),
            Request::UnassignIpv6Addresses(request) => self.unassign_ipv6(request),
            Request::UnassignPrivateIpAddresses(request) => self.unassign_ipv4(request),
            Request::DescribeInstances(_)
            | Request::DescribeInstanceTypes(_)
            | Request::DescribeNetworkInterfaces(_)
            | Request::DescribeRouteTables(_)
            | Request::DescribeSecurityGroups(_)
            | Request::DescribeSubnets(_)
            | Request::DescribeTags(_)
            | Request::DescribeVpcs(_) => describe::describe(self.state, self.settings, request, self.now),
        }
    }

    /// A fresh id in AWS's form: the prefix, `0` and 16 hexadecimal digits.
    fn fresh_id(&mut self, prefix: &str) -> String {
        format!("{prefix}0{:016x}", self.random.draw())
    }

    fn fresh<T: FromStr<Err = InvalidId>>(&mut self, prefix: &str) -> Result<T, ApiError> {
        Ok(self.fresh_id(prefix).parse::<T>()?)
    }
}
