"""Causes of failures of storage: one id each, with its advice. docs/troubleshooting.md lists them.

`{bucket}` and `{tries}` are filled in.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One cause.

    Args:
        id: of the error.
        what: the fact, after "could not read: " and the like.
        todo: the fix.
        codes: of S3, as text, or of the operating system, as numbers.
    """

    id: str
    what: str
    todo: str
    codes: tuple[str | int, ...] = ()


KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys) "
    "in the environment of every node, or use an instance role"
)

LOCAL = (
    Cause("E-STORAGE-370", "there is no such file or folder",
          "check the path, or run the stage that makes it", (errno.ENOENT,)),
    Cause("E-STORAGE-371", "permission denied",
          "give this user access to the path, or choose another", (errno.EACCES, errno.EPERM)),
    Cause("E-STORAGE-372", "the file system is read-only",
          "choose a path that can be written", (errno.EROFS,)),
    Cause("E-STORAGE-373", "no space left on the device",
          "free some space, or choose another device", (errno.ENOSPC,)),
    Cause("E-STORAGE-374", "the disk quota is used up",
          "free some space, or choose another device", (errno.EDQUOT,)),
    Cause("E-STORAGE-375", "it is a folder, not a file", "name the file", (errno.EISDIR,)),
    Cause("E-STORAGE-376", "a part of the path is a file, not a folder",
          "check the path", (errno.ENOTDIR,)),
    Cause("E-STORAGE-377", "a file is where a folder is needed",
          "remove the file, or choose another path", (errno.EEXIST,)),
    Cause("E-STORAGE-378", "the path is too long for the file system",
          "shorten run.root, data.root or the name", (errno.ENAMETOOLONG,)),
    Cause("E-STORAGE-379", "links lead round in a circle",
          "check the links of the path with `ls -l`", (errno.ELOOP,)),
    Cause("E-STORAGE-380", "the device failed",
          "check the disk (`dmesg`) or the network mount, then run the command again",
          (errno.EIO, errno.ESTALE, errno.ENODEV, errno.EREMOTEIO, errno.EHOSTDOWN,
           errno.ENOTCONN)),
    Cause("E-STORAGE-381", "the file is larger than this user may write",
          "raise the limit with `ulimit -f`, or choose a file system for large files",
          (errno.EFBIG,)),
    Cause("E-STORAGE-382", "this process has too many open files",
          "raise the limit with `ulimit -n 65536`", (errno.EMFILE, errno.ENFILE)),
    Cause("E-STORAGE-383", "it is a device, a pipe or a socket", "name a regular file",
          (errno.ESPIPE, errno.ENXIO)),
)  # fmt: skip
LOCAL_OTHER = Cause("E-STORAGE-002", "", "check the device and the path")

NO_CREDENTIALS = Cause("E-STORAGE-390", "there are no S3 credentials", KEYS)
DENIED = Cause(
    "E-STORAGE-391", "S3 denied access",
    f"let the policy of bucket {{bucket}} allow it, or use other keys: {KEYS}",
    ("AccessDenied", "AllAccessDisabled", "Forbidden", "403"),
)  # fmt: skip
NO_BUCKET = Cause("E-STORAGE-392", "there is no bucket {bucket}",
                  "create the bucket, or check its name and AWS_ENDPOINT_URL",
                  ("NoSuchBucket",))  # fmt: skip
NO_OBJECT = Cause(
    "E-STORAGE-393", "there is no such object in bucket {bucket}",
    "check the URI and AWS_ENDPOINT_URL, or run the stage that makes the object",
    ("NoSuchKey", "NoSuchVersion", "NotFound", "404"),
)  # fmt: skip
NO_ANSWER = Cause("E-STORAGE-395", "the S3 endpoint does not answer ({tries})",
                  "check the network, a firewall or proxy, and AWS_ENDPOINT_URL")  # fmt: skip
KEPT_FAILING = Cause("E-STORAGE-396", "S3 kept failing ({tries})",
                     "check the state of the object store, and that AWS_ENDPOINT_URL is its "
                     "address, then run the command again")  # fmt: skip
CERTIFICATE = Cause("E-STORAGE-409", "the certificate of the S3 endpoint is not trusted",
                    "set AWS_CA_BUNDLE to the file of its certificate authority, or check "
                    "AWS_ENDPOINT_URL")  # fmt: skip
NOT_S3 = Cause(
    "E-STORAGE-410", "the answer is not one of S3",
    "check AWS_ENDPOINT_URL: its port may be that of a web page or console",
    ("MethodNotAllowed", "NotImplemented", "405", "501"),
)  # fmt: skip
SETTINGS = Cause(
    "E-STORAGE-411", "the S3 client refuses its settings",
    "correct {variables}, or the files ~/.aws/config and ~/.aws/credentials",
)  # fmt: skip
LOGIN = Cause("E-STORAGE-412", "the S3 credentials could not be fetched",
              "log in again (`aws sso login`), or check the instance role, or set keys: "
              + KEYS)  # fmt: skip
S3_OTHER = Cause("E-STORAGE-003", "S3 refused",
                 "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the bucket")  # fmt: skip

S3 = (
    DENIED,
    NO_BUCKET,
    NO_OBJECT,
    NOT_S3,
    Cause("E-STORAGE-394", "the object changed while it was read",
          "run the command again when nothing writes there", ("PreconditionFailed", "412")),
    Cause("E-STORAGE-397", "the clock of this machine is wrong",
          "set the clock of every node, with NTP or chrony: `timedatectl` shows its state",
          ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture")),
    Cause("E-STORAGE-398", "the temporary keys have expired",
          "get new ones and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN on "
          "every node, or use an instance role, then resume with --resume",
          ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")),
    Cause("E-STORAGE-399", "S3 does not know the access key",
          "check AWS_ACCESS_KEY_ID, and that AWS_ENDPOINT_URL is the store that gave it out",
          ("InvalidAccessKeyId", "InvalidClientTokenId")),
    Cause("E-STORAGE-400", "the signature is wrong",
          "set AWS_SECRET_ACCESS_KEY to the secret that belongs to AWS_ACCESS_KEY_ID",
          ("SignatureDoesNotMatch",)),
    Cause("E-STORAGE-401", "the session token is wrong",
          "set AWS_SESSION_TOKEN to that of the keys; unset it for permanent keys",
          ("InvalidToken", "UnrecognizedClientException")),
    Cause("E-STORAGE-402", "bucket {bucket} is in another region",
          "set AWS_DEFAULT_REGION to the region of the bucket, and unset AWS_ENDPOINT_URL or set "
          "it to that region's",
          ("PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed",
           "IllegalLocationConstraintException", "301", "302", "307")),
    Cause("E-STORAGE-403", "the object is in cold storage",
          "restore it first, with the RestoreObject call or a batch job, or move it to a storage "
          "class that can be read at once",
          ("InvalidObjectState", "ObjectNotInActiveTierError")),
    Cause("E-STORAGE-404", "the quota or the space of the object store is used up",
          "delete what is not needed, or have the quota of bucket {bucket} raised",
          ("QuotaExceeded", "QuotaExceededException", "InsufficientCapacity",
           "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507")),
    Cause("E-STORAGE-405", "the encryption key of the bucket cannot be used",
          "have the KMS key enabled and these keys allowed to use it",
          ("KMS.DisabledException", "KMS.NotFoundException", "KMS.InvalidStateException",
           "KMS.KMSInvalidStateException", "KMS.InvalidKeyUsageException")),
    Cause("E-STORAGE-406", "the store takes no bucket of this name",
          "check the name: 3 to 63 characters of a-z 0-9 . -", ("InvalidBucketName",)),
    Cause("E-STORAGE-407", "the account may not use S3",
          "ask whoever runs the account: it is suspended, unpaid or not signed up",
          ("AccountProblem", "NotSignedUp", "UserSuspended", "InvalidPayer", "InvalidSecurity")),
    Cause("E-STORAGE-408", "the key or the object is too long for S3",
          "shorten run.root, data.root or the name; lower ingest.shard_bytes for large objects",
          ("KeyTooLongError", "EntityTooLarge")),
)  # fmt: skip
