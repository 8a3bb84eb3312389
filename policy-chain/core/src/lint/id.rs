//! The kinds of findings.

use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing, and often meant so.
    Info,
    /// Hardly meant so: something has no effect, or another one than it seems.
    Warning,
    /// Refused, or not in force as written.
    Error,
}

impl Severity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// `info`, `warning` or `error`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $severity:ident;)*) => {
        /// The kinds of findings. Their names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Id {
            $($(#[$doc])* $name,)*
        }

        impl Id {
            /// All of them, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name, as users see it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)*
                }
            }
        }
    };
}

ids! {
    /// A file, or a document in it, that cannot be read.
    Unreadable = "unreadable", Error;
    /// The API server refuses the object.
    Invalid = "invalid", Error;
    /// The API takes it, and Sluice cannot use it: an allow grants nothing, a deny denies everything.
    Unusable = "unusable", Error;
    /// A version of a kind that is not read.
    UnknownVersion = "unknown-version", Error;
    /// Application rules of two protocols meet on a port: both grant nothing.
    MixedApplicationRules = "mixed-application-rules", Error;
    /// Something in an object that is hardly meant so.
    Doubtful = "doubtful", Warning;
    /// A policy of a kind that Sluice does not have.
    UnknownPolicyKind = "unknown-policy-kind", Warning;
    /// An object that is there twice.
    DuplicateObject = "duplicate-object", Warning;
    /// A policy without any rule that could do something.
    NoRules = "no-rules", Warning;
    /// Rules of a direction that policyTypes leaves out.
    RuleNotInForce = "rule-not-in-force", Warning;
    /// A selector that asks for what cannot be.
    ContradictorySelector = "contradictory-selector", Warning;
    /// A peer that is held to pods, or to the policy's namespace, by nothing.
    WideSelector = "wide-selector", Warning;
    /// A policy that selects no pod.
    SelectsNoPod = "selects-no-pod", Warning;
    /// A rule that matches nothing.
    MatchesNothing = "matches-nothing", Warning;
    /// A CiliumCIDRGroup that is not there.
    UnknownCidrGroup = "unknown-cidr-group", Warning;
    /// A Service that is not there.
    UnknownService = "unknown-service", Warning;
    /// A port name that no pod has.
    UnknownPortName = "unknown-port-name", Warning;
    /// Exceptions that leave nothing of their block.
    ExceptEverything = "except-everything", Warning;
    /// A rule that others leave nothing to do.
    ShadowedRule = "shadowed-rule", Warning;
    /// Cluster policies of one priority that may match the same traffic.
    PriorityTie = "priority-tie", Warning;
    /// Application rules for traffic that another rule allows without.
    ToothlessApplicationRule = "toothless-application-rule", Warning;
    /// A policy that only denies, and denies everything else too.
    DenyOnly = "deny-only", Warning;
    /// toFQDNs for names that the DNS rules refuse.
    NamesNeverLearned = "names-never-learned", Warning;
    /// Egress rules without a way to DNS.
    NoDns = "no-dns", Warning;
    /// `{}` in a list of rules of cilium.io.
    EmptyRule = "empty-rule", Info;
    /// A peer that is not there, of a rule that has others.
    AbsentPeer = "absent-peer", Info;
    /// A block with addresses of pods.
    BlockHoldsPods = "block-holds-pods", Info;
    /// A dry run.
    DryRun = "dry-run", Info;
    /// Objects that are no policies.
    OtherKind = "other-kind", Info;
    /// There were more rules than are compared.
    NotAllCompared = "not-all-compared", Info;
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
