"""What connectors are made of: values, HTTP session, quota, journal, paging, page parsing."""
