//! The planner and the state against a small model of EC2: steady states, scenarios with golden plans, and random lives.

#[cfg(test)]
mod ec2;
#[cfg(test)]
mod life;
#[cfg(test)]
mod random;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod steady;
