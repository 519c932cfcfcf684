"""HTTP below the endpoints: authentication, permissions, problems, streams."""
