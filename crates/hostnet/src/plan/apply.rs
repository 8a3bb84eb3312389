//! What an op does to a picture: the kernel's part, as a pure model.

use crate::plan::Op;
use crate::state::{NftTable, Observed, Sysctl};

impl Observed {
    /// The picture after `op`: what the kernel would do. It lets planners and daemons be tested without a kernel.
    /// Side effects of the kernel (the route to an address's prefix, what falls with a link) are not modelled.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::SetSysctl { sysctl, .. } => {
                self.sysctls.retain(|seen| seen.key != sysctl.key);
                self.sysctls.push(Sysctl::clone(sysctl));
            }
            Op::SetLink { to, .. } => {
                for link in self.links.iter_mut().filter(|link| link.name == to.dev) {
                    link.up = to.up.unwrap_or(link.up);
                    link.mtu = to.mtu.unwrap_or(link.mtu);
                }
            }
            Op::AddAddress(address) => {
                if !self.addresses.iter().any(|seen| seen.is_same(address)) {
                    self.addresses.push(address.clone());
                }
            }
            Op::DeleteAddress(address) => self.addresses.retain(|seen| !seen.is_same(address)),
            Op::SetNeighbour { neighbour, .. } => {
                self.neighbours.retain(|seen| !seen.is_same_entry(neighbour));
                self.neighbours.push(neighbour.clone());
            }
            Op::DeleteNeighbour(neighbour) => self.neighbours.retain(|seen| !seen.is_same_entry(neighbour)),
            Op::SetRoute { route, .. } => {
                let route = route.clone().canonical();
                match self.routes.iter_mut().find(|seen| seen.key() == route.key()) {
                    Some(seen) => *seen = route,
                    None => self.routes.push(route),
                }
            }
            Op::DeleteRoute(route) => {
                let route = route.clone().canonical();
                if let Some(at) = self.routes.iter().position(|seen| *seen == route) {
                    self.routes.remove(at);
                }
            }
            Op::AddRule(rule) => {
                let rule = rule.clone().canonical();
                if !self.rules.contains(&rule) {
                    let at = self.rules.partition_point(|seen| seen.priority <= rule.priority);
                    self.rules.insert(at, rule);
                }
            }
            Op::DeleteRule(rule) => {
                let rule = rule.clone().canonical();
                if let Some(at) = self.rules.iter().position(|seen| *seen == rule) {
                    self.rules.remove(at);
                }
            }
            Op::SetNft { ruleset, .. } => {
                self.nft.retain(|seen| seen.id != ruleset.id);
                self.nft.push(NftTable { id: ruleset.id.clone(), content: ruleset.content.clone() });
            }
            Op::DeleteNft(id) => self.nft.retain(|seen| seen.id != *id),
        }
    }
}
