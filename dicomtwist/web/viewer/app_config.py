"""
The file ``app-config.js`` of OHIF, pointed at this server.
"""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["app_config"]

#: The name of the data source in OHIF.
SOURCE: Final = "dicomtwist"

#: The settings of the data source, but for its URLs, as https://docs.ohif.org/configuration/dataSources/dicom-web has them.
_SETTINGS: Final[dict[str, Any]] = {
    "name": SOURCE,
    "qidoSupportsIncludeField": True,
    "supportsReject": False,
    "dicomUploadEnabled": True,
    "imageRendering": "wadors",
    "thumbnailRendering": "wadors",
    "enableStudyLazyLoad": True,
    "supportsFuzzyMatching": True,
    "supportsWildcard": True,
    "singlepart": "bulkdata,video,pdf",
    "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
    "omitQuotationForMultipartRequest": True,
}

#: The script behind the file of the folder. The data sources of that file are examples on the internet, but for the one of
#: local files; the rest of it holds. It has a configuration, or a function that makes one.
_SCRIPT: Final = """
;(function () {
  // A bundle of OHIF 3.12 takes this name of Node.js when the last file that it waits for is a style sheet, and no script runs.
  if (typeof __filename === "undefined") {
    window.__filename = new URL("/app-config.js", window.location.href).href;
  }
  var source = %(source)s;
  var root = %(root)s || window.location.origin + %(path)s;
  ["qidoRoot", "wadoRoot", "wadoUriRoot"].forEach(function (name) {
    source.configuration[name] = name === "wadoUriRoot" ? root + "/wado" : root;
  });
  function pointed(config) {
    config = config || {};
    var others = (config.dataSources || []).filter(function (one) {
      return /dicomlocal$/.test(one.namespace);
    });
    return Object.assign({ extensions: [], modes: [], showStudyList: true, routerBasename: "/" }, config, {
      dataSources: [source].concat(others),
      defaultDataSourceName: source.sourceName,
    });
  }
  var before = window.config;
  window.config =
    typeof before === "function"
      ? function () {
          return Promise.resolve(before.apply(this, arguments)).then(pointed);
        }
      : pointed(before);
})();
"""


def app_config(before: str, name: str, public_url: str = "", path: str = "/dicom-web") -> str:
    """
    Return the text of ``app-config.js``.

    :param before: the text of the file in the folder; its settings hold, but for the data sources.
    :param name: the name of the archive for people.
    :param public_url: the URL of DICOMweb; ``""`` for *path* at the origin of the page.
    :param path: the path of DICOMweb.
    """
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": SOURCE,
        "configuration": {"friendlyName": name, **_SETTINGS},
    }
    values = {"source": json.dumps(source, indent=2), "root": json.dumps(public_url), "path": json.dumps(path)}
    return before + _SCRIPT % values
