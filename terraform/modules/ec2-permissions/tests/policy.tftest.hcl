run "ipv4_has_no_action_of_ipv6" {
  command = plan

  assert {
    condition     = !contains(output.actions, "ec2:AssignIpv6Addresses") && contains(output.actions, "ec2:AssignPrivateIpAddresses")
    error_message = "what is not needed is not granted"
  }
  assert {
    condition     = [for statement in jsondecode(output.policy).Statement : statement.Sid] == ["Read", "Tag", "Change"]
    error_message = "three statements"
  }
}

run "ipv6_alone_makes_no_eni" {
  command = plan

  variables {
    families = ["ipv6"]
  }

  assert {
    condition     = length(setintersection(output.actions, ["ec2:CreateNetworkInterface", "ec2:AttachNetworkInterface", "ec2:DeleteNetworkInterface"])) == 0
    error_message = "pods of IPv6 alone have the primary ENI's /80"
  }
}

run "ipv6_on_several_network_cards_makes_enis" {
  command = plan

  variables {
    families  = ["ipv6"]
    multi_nic = true
  }

  assert {
    condition = length(setsubtract([for name in [
      "AssignIpv6Addresses", "AttachNetworkInterface", "CreateNetworkInterface", "CreateTags", "DeleteNetworkInterface", "DetachNetworkInterface",
      "ModifyNetworkInterfaceAttribute",
    ] : "ec2:${name}"], output.actions)) == 0
    error_message = "an ENI on each further network card is made, attached, set to go with its instance, and given back"
  }
  assert {
    condition     = !contains(output.actions, "ec2:AssignPrivateIpAddresses")
    error_message = "there is no pool of IPv4 addresses"
  }
}

run "several_network_cards_need_nothing_more_with_ipv4" {
  command = plan

  variables {
    multi_nic = true
  }

  assert {
    condition     = contains(output.actions, "ec2:CreateNetworkInterface") && !contains(output.actions, "ec2:AssignIpv6Addresses")
    error_message = "it is ENIs and addresses, on each card"
  }
}

run "both_families_have_every_action_of_the_list" {
  command = plan

  variables {
    families = ["ipv4", "ipv6"]
  }

  assert {
    condition     = toset(output.actions) == toset([for name in flatten(values(jsondecode(file("./actions.json")))) : "ec2:${name}"])
    error_message = "actions.json and nothing else"
  }
}

run "one_cluster_has_the_same_actions_and_every_change_has_a_condition" {
  command = plan

  variables {
    families = ["ipv4", "ipv6"]
    scope = {
      cluster_name = "shop"
      vpc_arn      = "arn:aws:ec2:us-west-2:111122223333:vpc/vpc-0123456789abcdef0"
    }
  }

  assert {
    condition     = toset(output.actions) == toset([for name in flatten(values(jsondecode(file("./actions.json")))) : "ec2:${name}"])
    error_message = "a narrower scope takes no action away"
  }
  assert {
    condition     = alltrue([for statement in jsondecode(output.policy).Statement : can(statement.Condition) || statement.Sid == "Read"])
    error_message = "a change without a condition reaches beyond the cluster"
  }
  assert {
    condition     = alltrue([for statement in jsondecode(output.policy).Statement : !contains(statement.Resource, "*") || statement.Sid == "Read"])
    error_message = "a change of any resource reaches beyond the cluster"
  }
  assert {
    condition     = output.eni_tags == tomap({ "cluster.k8s.amazonaws.com/name" = "shop" }) && output.instance_tags == tomap({ "kubernetes.io/cluster/shop" = "owned" })
    error_message = "the tags that the conditions ask for"
  }
}

run "other_families_are_refused" {
  command = plan

  variables {
    families = ["ipx"]
  }

  expect_failures = [var.families]
}
