# The IAM policy that ipamd needs, made from the list of the calls that it makes (actions.json; a test compares the list with
# the code). Without a provider, so that `terraform test` holds it anywhere.

variable "families" {
  description = "What pods have: [\"ipv4\"], [\"ipv6\"], or both."
  type        = set(string)
  default     = ["ipv4"]

  validation {
    condition     = length(var.families) > 0 && length(setsubtract(var.families, ["ipv4", "ipv6"])) == 0
    error_message = "families: ipv4, ipv6, or both."
  }
}

variable "multi_nic" {
  description = "Pods may have an interface on each network card of their node (ENABLE_MULTI_NIC): also with IPv6 alone ipamd then makes ENIs."
  type        = bool
  default     = false
}

variable "scope" {
  description = "Limits ipamd to ENIs, instances and subnets of one cluster: {cluster_name, vpc_arn}. Then CLUSTER_NAME has to be set, and nodes and their first ENI carry the tags that `instance_tags` and `eni_tags` say. Null: every ENI of the account."
  type = object({
    cluster_name = string
    vpc_arn      = string
  })
  default = null
}

variable "partition" {
  description = "aws, aws-cn, aws-us-gov."
  type        = string
  default     = "aws"
}

locals {
  actions = jsondecode(file("${path.module}/actions.json"))
  # Pods of IPv6 alone have the /80 of the primary ENI: no ENI is made, attached or given back, but for one on each further network card.
  ipv4       = contains(var.families, "ipv4")
  makes_enis = local.ipv4 || var.multi_nic
  ec2        = { for group, names in local.actions : group => [for name in names : "ec2:${name}"] }

  enis      = "arn:${var.partition}:ec2:*:*:network-interface/*"
  instances = "arn:${var.partition}:ec2:*:*:instance/*"
  places    = ["arn:${var.partition}:ec2:*:*:subnet/*", "arn:${var.partition}:ec2:*:*:security-group/*"]

  on_enis      = concat(local.makes_enis ? local.ec2.eni : [], local.ipv4 ? local.ec2.ipv4 : [], contains(var.families, "ipv6") ? local.ec2.ipv6 : [])
  on_instances = local.makes_enis ? local.ec2.eni_and_instance : []
  # ModifyNetworkInterfaceAttribute of an attachment asks for the instance too.
  on_both = local.makes_enis ? concat(local.ec2.eni_and_instance, ["ec2:ModifyNetworkInterfaceAttribute"]) : []

  # Conditions, as JSON: statements with and without one are then of one type.
  cluster      = try(var.scope.cluster_name, "")
  cluster_tag  = "cluster.k8s.amazonaws.com/name"
  of_cluster   = jsonencode({ StringEquals = { "aws:ResourceTag/${local.cluster_tag}" = local.cluster } })
  new_eni      = jsonencode({ StringEquals = { "aws:RequestTag/${local.cluster_tag}" = local.cluster } })
  in_vpc       = jsonencode({ ArnEquals = { "ec2:Vpc" = try(var.scope.vpc_arn, "") } })
  own_instance = jsonencode({ StringEquals = { "aws:ResourceTag/kubernetes.io/cluster/${local.cluster}" = "owned" } })
  when_made    = jsonencode({ StringEquals = { "ec2:CreateAction" = "CreateNetworkInterface" } })

  create = local.makes_enis ? local.ec2.create : []
  wide = [
    { sid = "Read", action = local.ec2.read, resource = ["*"], condition = "" },
    { sid = "Tag", action = local.ec2.tag, resource = [local.enis], condition = "" },
    { sid = "Change", action = concat(local.on_enis, local.on_instances, local.create), resource = ["*"], condition = "" },
  ]
  scoped = [
    { sid = "Read", action = local.ec2.read, resource = ["*"], condition = "" },
    { sid = "Create", action = local.create, resource = [local.enis], condition = local.new_eni },
    { sid = "CreateHere", action = local.create, resource = local.places, condition = local.in_vpc },
    { sid = "TagNew", action = local.makes_enis ? local.ec2.tag : [], resource = [local.enis], condition = local.when_made },
    { sid = "Tag", action = local.ec2.tag, resource = [local.enis], condition = local.of_cluster },
    { sid = "Change", action = concat(local.on_enis, local.on_instances), resource = [local.enis], condition = local.of_cluster },
    { sid = "Instances", action = local.on_both, resource = [local.instances], condition = local.own_instance },
  ]
  statements = [for statement in var.scope == null ? local.wide : local.scoped : merge(
    { Sid = statement.sid, Effect = "Allow", Action = sort(statement.action), Resource = statement.resource },
    statement.condition == "" ? {} : { Condition = jsondecode(statement.condition) },
  ) if length(statement.action) > 0]
}

output "policy" {
  description = "The policy document, as JSON."
  value       = jsonencode({ Version = "2012-10-17", Statement = local.statements })
}

output "actions" {
  description = "The actions that it allows."
  value       = sort(distinct(flatten([for statement in local.statements : statement.Action])))
}

output "eni_tags" {
  description = "What a node's first ENI has to be tagged with (launch template), so that ipamd may change it."
  value       = var.scope == null ? {} : { (local.cluster_tag) = var.scope.cluster_name }
}

output "instance_tags" {
  description = "What nodes have to be tagged with, so that ipamd may attach ENIs to them."
  value       = var.scope == null ? {} : { "kubernetes.io/cluster/${var.scope.cluster_name}" = "owned" }
}
