"""Images in S3: where each one lies, how it gets there, how a client reaches it. The only file that knows boto3.

Any S3-compatible endpoint will do. A key follows from job and index alone, so rendering a unit twice writes the same
object twice. Which images exist is the ledger's business.
"""
