variables {
  name         = "test"
  zones        = ["us-west-2a", "us-west-2b", "us-west-2c", "us-west-2d"]
  cluster_name = "test"
  pod_cidr     = "100.64.0.0/16"
}

run "subnets_of_four_zones_do_not_overlap" {
  command = plan

  assert {
    condition     = output.subnets.private["us-west-2d"].cidr == "10.0.96.0/19" && output.subnets.public["us-west-2a"].cidr == "10.0.128.0/21"
    error_message = "private subnets have the lower half, public ones begin with the upper"
  }
  assert {
    condition     = [for zone in var.zones : output.subnets.pods[zone].cidr] == ["100.64.0.0/18", "100.64.64.0/18", "100.64.128.0/18", "100.64.192.0/18"]
    error_message = "pods have a quarter of their CIDR in each zone"
  }
  assert {
    condition     = output.subnets.pods["us-west-2a"].tags["cni.networking.k8s.aws/cluster/test"] == "shared" && output.subnets.pods["us-west-2a"].tags["kubernetes.io/role/cni"] == "1"
    error_message = "ipamd would not make ENIs there"
  }
}

run "the_smallest_vpc_leaves_room_for_nodes" {
  command = plan

  variables {
    cidr     = "10.1.16.0/20"
    pod_cidr = ""
  }

  assert {
    condition     = output.subnets.private["us-west-2a"].cidr == "10.1.16.0/23" && output.subnets.public["us-west-2d"].cidr == "10.1.25.128/25"
    error_message = "a /23 for nodes and a /25 for load balancers"
  }
  assert {
    condition     = length(output.subnets.pods) == 0
    error_message = "no second CIDR, no subnets of pods"
  }
}

run "a_vpc_that_is_too_small_is_refused" {
  command = plan

  variables {
    cidr = "10.1.16.0/21"
  }

  expect_failures = [var.cidr]
}

run "the_same_zone_twice_is_refused" {
  command = plan

  variables {
    zones = ["us-west-2a", "us-west-2a"]
  }

  expect_failures = [var.zones]
}
