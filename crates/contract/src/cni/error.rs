//! The error object that a failing plugin prints.

use serde::{Deserialize, Serialize};

use super::version::SpecVersion;
use crate::rpc::{Refusal, RefusalCode};

/// The codes of CNI spec 1.1.0, section 5 "Error", and ours from 100 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// 1: `cniVersion` is not one that the plugin speaks, or lacks the verb.
    IncompatibleVersion,
    /// 2: a field of the configuration asks for what the plugin cannot do.
    UnsupportedField,
    /// 3: the container is not known, or gone; the runtime need not clean up.
    UnknownContainer,
    /// 4: a variable of the environment is missing or invalid.
    InvalidEnvironment,
    /// 5: an I/O failure.
    Io,
    /// 6: the configuration is not JSON of the expected shape.
    Decode,
    /// 7: the configuration is understood, and wrong.
    InvalidConfig,
    /// 11: a passing condition; the runtime may try again.
    TryAgain,
    /// 50 (STATUS): no ADD can be served.
    NotAvailable,
    /// 51 (STATUS): no ADD can be served, and running containers may lack connectivity.
    LimitedConnectivity,
    /// 100: the kernel refused a change of the pod's network.
    Kernel,
    /// 101: CHECK found what differs from the result of ADD.
    CheckFailed,
    /// 102: a name is taken by what is not ours.
    Conflict,
    /// 103: GC or DEL could not remove everything.
    Leftover,
    /// 110: no subnet has an address left.
    SubnetExhausted,
    /// 111: the instance's limits are reached.
    EniLimit,
    /// 112: IAM denies a call.
    IamDenied,
    /// 113: plugin and daemon have no protocol version in common.
    VersionSkew,
    /// 119: the daemon refused for a reason that has no code here.
    Refused,
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Kernel => 100,
            Self::CheckFailed => 101,
            Self::Conflict => 102,
            Self::Leftover => 103,
            Self::SubnetExhausted => 110,
            Self::EniLimit => 111,
            Self::IamDenied => 112,
            Self::VersionSkew => 113,
            Self::Refused => 119,
        }
    }
}

impl From<RefusalCode> for ErrorCode {
    /// What passes by itself is "try again" (11); what somebody must mend has a code of its own.
    fn from(code: RefusalCode) -> Self {
        match code {
            RefusalCode::SubnetExhausted => Self::SubnetExhausted,
            RefusalCode::EniLimit => Self::EniLimit,
            RefusalCode::IamDenied => Self::IamDenied,
            RefusalCode::VersionSkew => Self::VersionSkew,
            RefusalCode::UnknownAttachment => Self::UnknownContainer,
            RefusalCode::PoolGrowing
            | RefusalCode::Throttled
            | RefusalCode::Ec2Unavailable
            | RefusalCode::QueueFull
            | RefusalCode::Cancelled
            | RefusalCode::NotReady
            | RefusalCode::PolicyNotReady
            | RefusalCode::Storage
            | RefusalCode::PodEniPending => Self::TryAgain,
            RefusalCode::BadRequest | RefusalCode::Other => Self::Refused,
        }
    }
}

/// What a plugin prints on standard output when it fails; its exit status is then not zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorObject {
    /// The configuration's version, or the newest that this build speaks where that is not known.
    pub cni_version: SpecVersion,
    /// [`ErrorCode::number`].
    pub code: u32,
    /// The object, the cause and the next step.
    pub msg: String,
    /// More of the cause; for a daemon's refusal its code, hint and time to wait.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl ErrorObject {
    /// An error without details.
    #[must_use]
    pub fn new(version: SpecVersion, code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { cni_version: version, code: code.number(), msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// What a runtime is told of a daemon's refusal.
    #[must_use]
    pub fn of_refusal(version: SpecVersion, refusal: &Refusal) -> Self {
        let mut details = format!("code {}", refusal.code);
        if let Some(ms) = refusal.retry_after_ms {
            details.push_str(&format!(", try again after {ms} ms"));
        }
        let msg = match &refusal.hint {
            Some(hint) => format!("{}; {hint}", refusal.message),
            None => refusal.message.clone(),
        };
        Self::new(version, refusal.code.into(), msg).details(details)
    }
}
