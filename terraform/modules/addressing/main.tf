# The CIDRs, names and tags of a test VPC's subnets. Without a provider, so that `terraform test` holds it anywhere.

variable "name" {
  description = "What everything is named after."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}$", var.name))
    error_message = "name: a lower-case letter, then letters, digits and dashes, 31 at most."
  }
}

variable "cidr" {
  description = "The VPC's CIDR, for nodes; /16 to /20."
  type        = string
  default     = "10.0.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.cidr)) && try(tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "cidr: an IPv4 CIDR from /16 to /20."
  }
}

variable "pod_cidr" {
  description = "A second CIDR of the VPC, for pods (custom networking); empty for none. /16 to /20."
  type        = string
  default     = ""

  validation {
    condition     = var.pod_cidr == "" || can(cidrnetmask(var.pod_cidr)) && try(tonumber(split("/", var.pod_cidr)[1]) >= 16 && tonumber(split("/", var.pod_cidr)[1]) <= 20, false)
    error_message = "pod_cidr: an IPv4 CIDR from /16 to /20, or nothing."
  }
}

variable "zones" {
  description = "The availability zones, one subnet of each kind in each; one to four."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 1 && length(var.zones) <= 4 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones: one to four different ones."
  }
}

variable "cluster_name" {
  description = "The cluster for which ENIs may be made in the pods' subnets."
  type        = string
}

locals {
  # Private subnets get the lower half, a part of it each; public ones a quarter of such a part, in the upper half.
  private = { for number, zone in var.zones : zone => cidrsubnet(var.cidr, 3, number) }
  public  = { for number, zone in var.zones : zone => cidrsubnet(var.cidr, 5, 16 + number) }
  pods    = var.pod_cidr == "" ? {} : { for number, zone in var.zones : zone => cidrsubnet(var.pod_cidr, 2, number) }
}

output "subnets" {
  description = "By kind and zone: {cidr, name, tags}."
  value = {
    public = { for zone, cidr in local.public : zone => {
      cidr = cidr
      name = "${var.name}-public-${zone}"
      tags = { "kubernetes.io/role/elb" = "1" }
    } }
    private = { for zone, cidr in local.private : zone => {
      cidr = cidr
      name = "${var.name}-private-${zone}"
      tags = { "kubernetes.io/role/internal-elb" = "1" }
    } }
    # ipamd makes ENIs in what is tagged so (ENABLE_SUBNET_DISCOVERY).
    pods = { for zone, cidr in local.pods : zone => {
      cidr = cidr
      name = "${var.name}-pods-${zone}"
      tags = {
        "kubernetes.io/role/cni"                             = "1"
        "cni.networking.k8s.aws/cluster/${var.cluster_name}" = "shared"
      }
    } }
  }
}
