# A VPC for a test cluster: public and private subnets, subnets of a second CIDR for pods, and endpoints, so that nodes work
# without the Internet.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

variable "name" {
  description = "What everything is named after."
  type        = string
}

variable "cluster_name" {
  description = "The cluster's name, for subnets' tags."
  type        = string
}

variable "cidr" {
  description = "The VPC's CIDR, /16 to /20."
  type        = string
  default     = "10.0.0.0/16"
}

variable "pod_cidr" {
  description = "A second CIDR for pods, /16 to /20; empty for none."
  type        = string
  default     = ""
}

variable "zones" {
  description = "Availability zones, one to four."
  type        = list(string)
}

variable "ipv6" {
  description = "Give the VPC and its subnets IPv6."
  type        = bool
  default     = false
}

variable "nat" {
  description = "Let private subnets reach the Internet, by one NAT gateway. It costs by the hour."
  type        = bool
  default     = true
}

variable "endpoints" {
  description = "Services that are reached by interface endpoints, each of which costs by the hour; S3's gateway costs nothing and is always there."
  type        = set(string)
  default     = []
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}

module "addressing" {
  source = "../addressing"

  name         = var.name
  cidr         = var.cidr
  pod_cidr     = var.pod_cidr
  zones        = var.zones
  cluster_name = var.cluster_name
}

data "aws_region" "here" {}

locals {
  # Numbers of the subnets' /64s: each kind and zone has its own.
  kinds  = ["public", "private", "pods"]
  number = { for pair in setproduct(local.kinds, var.zones) : join("/", pair) => index(local.kinds, pair[0]) * 4 + index(var.zones, pair[1]) }
}

resource "aws_vpc" "this" {
  cidr_block                       = var.cidr
  assign_generated_ipv6_cidr_block = var.ipv6
  enable_dns_support               = true
  enable_dns_hostnames             = true
  tags                             = merge(var.tags, { Name = var.name })
}

resource "aws_vpc_ipv4_cidr_block_association" "pods" {
  count = var.pod_cidr == "" ? 0 : 1

  vpc_id     = aws_vpc.this.id
  cidr_block = var.pod_cidr
}

# Nothing uses it; its rules are taken away.
resource "aws_default_security_group" "this" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = "${var.name}-unused" })
}

resource "aws_subnet" "public" {
  for_each = module.addressing.subnets.public

  vpc_id            = aws_vpc.this.id
  availability_zone = each.key
  cidr_block        = each.value.cidr
  ipv6_cidr_block   = var.ipv6 ? cidrsubnet(aws_vpc.this.ipv6_cidr_block, 8, local.number["public/${each.key}"]) : null
  tags              = merge(var.tags, each.value.tags, { Name = each.value.name })
}

resource "aws_subnet" "private" {
  for_each = module.addressing.subnets.private

  vpc_id                          = aws_vpc.this.id
  availability_zone               = each.key
  cidr_block                      = each.value.cidr
  ipv6_cidr_block                 = var.ipv6 ? cidrsubnet(aws_vpc.this.ipv6_cidr_block, 8, local.number["private/${each.key}"]) : null
  assign_ipv6_address_on_creation = var.ipv6
  tags                            = merge(var.tags, each.value.tags, { Name = each.value.name })
}

resource "aws_subnet" "pods" {
  for_each = module.addressing.subnets.pods

  vpc_id            = aws_vpc_ipv4_cidr_block_association.pods[0].vpc_id
  availability_zone = each.key
  cidr_block        = each.value.cidr
  ipv6_cidr_block   = var.ipv6 ? cidrsubnet(aws_vpc.this.ipv6_cidr_block, 8, local.number["pods/${each.key}"]) : null
  tags              = merge(var.tags, each.value.tags, { Name = each.value.name })
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = var.name })
}

resource "aws_egress_only_internet_gateway" "this" {
  count = var.ipv6 ? 1 : 0

  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = var.name })
}

resource "aws_eip" "nat" {
  count = var.nat ? 1 : 0

  domain = "vpc"
  tags   = merge(var.tags, { Name = "${var.name}-nat" })
}

resource "aws_nat_gateway" "this" {
  count = var.nat ? 1 : 0

  allocation_id = aws_eip.nat[0].id
  subnet_id     = aws_subnet.public[var.zones[0]].id
  tags          = merge(var.tags, { Name = var.name })

  depends_on = [aws_internet_gateway.this]
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = "${var.name}-public" })
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.this.id
  tags   = merge(var.tags, { Name = "${var.name}-private" })
}

resource "aws_route" "public" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route" "public_ipv6" {
  count = var.ipv6 ? 1 : 0

  route_table_id              = aws_route_table.public.id
  destination_ipv6_cidr_block = "::/0"
  gateway_id                  = aws_internet_gateway.this.id
}

resource "aws_route" "private" {
  count = var.nat ? 1 : 0

  route_table_id         = aws_route_table.private.id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[0].id
}

resource "aws_route" "private_ipv6" {
  count = var.ipv6 ? 1 : 0

  route_table_id              = aws_route_table.private.id
  destination_ipv6_cidr_block = "::/0"
  egress_only_gateway_id      = aws_egress_only_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  for_each = aws_subnet.public

  subnet_id      = each.value.id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table_association" "private" {
  for_each = aws_subnet.private

  subnet_id      = each.value.id
  route_table_id = aws_route_table.private.id
}

resource "aws_route_table_association" "pods" {
  for_each = aws_subnet.pods

  subnet_id      = each.value.id
  route_table_id = aws_route_table.private.id
}

resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${data.aws_region.here.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private.id]
  tags              = merge(var.tags, { Name = "${var.name}-s3" })
}

resource "aws_security_group" "endpoints" {
  count = length(var.endpoints) > 0 ? 1 : 0

  name        = "${var.name}-endpoints"
  description = "Interface endpoints, for the VPC"
  vpc_id      = aws_vpc.this.id
  tags        = merge(var.tags, { Name = "${var.name}-endpoints" })
}

resource "aws_vpc_security_group_ingress_rule" "endpoints" {
  for_each = length(var.endpoints) > 0 ? toset(compact([var.cidr, var.pod_cidr])) : []

  security_group_id = aws_security_group.endpoints[0].id
  description       = "HTTPS from nodes and pods"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_endpoint" "interface" {
  for_each = var.endpoints

  vpc_id              = aws_vpc.this.id
  service_name        = "com.amazonaws.${data.aws_region.here.region}.${each.value}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [for subnet in aws_subnet.private : subnet.id]
  security_group_ids  = [aws_security_group.endpoints[0].id]
  tags                = merge(var.tags, { Name = "${var.name}-${each.value}" })
}

output "vpc" {
  description = "The VPC: {id, arn, cidr}."
  value       = { id = aws_vpc.this.id, arn = aws_vpc.this.arn, cidr = var.cidr }
}

output "subnets" {
  description = "Ids by kind and zone."
  value = {
    public  = { for zone, subnet in aws_subnet.public : zone => subnet.id }
    private = { for zone, subnet in aws_subnet.private : zone => subnet.id }
    pods    = { for zone, subnet in aws_subnet.pods : zone => subnet.id }
  }

  # Nodes that boot before their subnets lead somewhere do not join.
  depends_on = [aws_route.private, aws_route_table_association.private, aws_route_table_association.pods]
}
