//! What the environment and options say of the meaning of policies, and of where daemons are asked. No other part reads the
//! environment.

use std::net::{Ipv4Addr, SocketAddr};

use sluice_policy_core::settings::Settings;

/// policyd's variable, which counts here too.
const CIDRS_MATCH_MANAGED: &str = "SLUICE_CILIUM_CIDRS_MATCH_MANAGED";

/// Settings of policyd that change what policies mean.
#[derive(Debug, clap::Args)]
pub(crate) struct Meaning {
    /// CIDRs of cilium.io rules match managed pods and nodes too: `true` or `false`. Where it is not given, the variable
    /// SLUICE_CILIUM_CIDRS_MATCH_MANAGED says so, as it does for policyd; what this node's policyd knows is judged by
    /// policyd's own setting.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = boolean
    )]
    cilium_cidrs_match_managed: Option<bool>,
}

impl Meaning {
    /// What policies are compiled for, but for the node.
    ///
    /// # Errors
    /// The variable is neither true nor false.
    #[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        self.settings_where(|name| std::env::var(name).ok())
    }

    fn settings_where(&self, source: impl FnOnce(&str) -> Option<String>) -> Result<Settings, String> {
        let said = match self.cilium_cidrs_match_managed {
            Some(said) => Some(said),
            // An empty value is an unset one, as in policyd.
            None => source(CIDRS_MATCH_MANAGED)
                .filter(|text| !text.is_empty())
                .map(|text| boolean(&text).map_err(|fault| format!("{CIDRS_MATCH_MANAGED} is {text:?}: {fault}")))
                .transpose()?,
        };
        Ok(Settings { cilium_cidrs_match_managed: said.unwrap_or_default(), ..Settings::default() })
    }

    /// The same where policyd has said what it is set to; only an option is stronger.
    pub(crate) fn settings_beside(&self, policyd: bool) -> Settings {
        let said = self.cilium_cidrs_match_managed.unwrap_or(policyd);
        Settings { cilium_cidrs_match_managed: said, ..Settings::default() }
    }
}

/// Where a daemon of this node serves its introspection: what its own variable says here too, or else `port` of the loopback
/// address.
///
/// # Errors
/// The variable is no address with a port.
#[expect(clippy::disallowed_methods, reason = "config.rs is where the environment is read")]
pub(crate) fn introspection(variable: &str, port: u16) -> Result<SocketAddr, String> {
    introspection_where(variable, port, |name| std::env::var(name).ok())
}

fn introspection_where(
    variable: &str,
    port: u16,
    source: impl FnOnce(&str) -> Option<String>,
) -> Result<SocketAddr, String> {
    // An empty value is an unset one, as in the daemons.
    let Some(text) = source(variable).filter(|text| !text.is_empty()) else {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    };
    let said: SocketAddr = text
        .parse()
        .map_err(|_error| format!("{variable} is {text:?}: it must be ADDRESS:PORT, e.g. 127.0.0.1:{port}"))?;
    // Who serves all addresses is asked at the loopback address of IPv4, which each node has.
    let ip = Some(said.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST.into());
    Ok(SocketAddr::from((ip, said.port())))
}

/// In the words that policyd reads.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Meaning, introspection_where};

    #[test]
    fn daemons_are_asked_where_their_variables_say() {
        let of = |value: Option<&str>| {
            let address = introspection_where("INTROSPECTION_BIND_ADDRESS", 61679, |_| value.map(str::to_owned));
            address.map(|address| address.to_string())
        };
        assert_eq!(of(None).unwrap(), "127.0.0.1:61679");
        assert_eq!(of(Some("")).unwrap(), "127.0.0.1:61679");
        assert_eq!(of(Some("127.0.0.2:7000")).unwrap(), "127.0.0.2:7000");
        assert_eq!(of(Some("0.0.0.0:7000")).unwrap(), "127.0.0.1:7000");
        assert_eq!(of(Some("[::]:7000")).unwrap(), "127.0.0.1:7000");
        assert_eq!(of(Some("[::1]:7000")).unwrap(), "[::1]:7000");
        let fault = of(Some("7000")).unwrap_err();
        assert_eq!(fault, r#"INTROSPECTION_BIND_ADDRESS is "7000": it must be ADDRESS:PORT, e.g. 127.0.0.1:61679"#);
    }

    #[test]
    fn an_option_is_stronger_than_what_else_says_it() {
        let of = |option, variable: Option<&str>| {
            let meaning = Meaning { cilium_cidrs_match_managed: option };
            let settings = meaning.settings_where(|name| {
                assert_eq!(name, "SLUICE_CILIUM_CIDRS_MATCH_MANAGED");
                variable.map(str::to_owned)
            });
            settings.map(|settings| settings.cilium_cidrs_match_managed)
        };
        assert_eq!(of(None, None), Ok(false));
        assert_eq!(of(None, Some("")), Ok(false));
        assert_eq!(of(None, Some("true")), Ok(true));
        assert_eq!(of(Some(false), Some("1")), Ok(false));
        assert_eq!(of(Some(true), Some("maybe")), Ok(true));
        let fault = of(None, Some("maybe")).unwrap_err();
        assert_eq!(fault, r#"SLUICE_CILIUM_CIDRS_MATCH_MANAGED is "maybe": it must be true or false"#);
        for (option, policyd, said) in [(None, true, true), (None, false, false), (Some(false), true, false)] {
            let meaning = Meaning { cilium_cidrs_match_managed: option };
            assert_eq!(meaning.settings_beside(policyd).cilium_cidrs_match_managed, said);
        }
    }
}
