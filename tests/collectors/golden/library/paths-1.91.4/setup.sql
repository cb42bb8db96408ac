INSERT INTO assets (id, type, "createdAt", "isVisible", "thumbhash", "resizePath", "webpPath", "encodedVideoPath") VALUES
  ('00000000-0000-0000-0000-000000000001', 'IMAGE', to_timestamp(1000), true, '\x01', 'a.jpeg', 'a.webp', NULL),
  ('00000000-0000-0000-0000-000000000002', 'IMAGE', to_timestamp(2000), true, NULL, '', NULL, NULL),
  ('00000000-0000-0000-0000-000000000003', 'VIDEO', to_timestamp(3000), true, '\x01', 'c.jpeg', 'c.webp', 'c.mp4'),
  ('00000000-0000-0000-0000-000000000004', 'IMAGE', to_timestamp(4000), true, '\x01', 'd.jpeg', '', NULL),
  ('00000000-0000-0000-0000-000000000005', 'VIDEO', to_timestamp(5000), false, NULL, NULL, NULL, NULL);
INSERT INTO exif ("assetId") VALUES ('00000000-0000-0000-0000-000000000001'), ('00000000-0000-0000-0000-000000000003'), ('00000000-0000-0000-0000-000000000004');
INSERT INTO asset_job_status ("assetId", "facesRecognizedAt") VALUES ('00000000-0000-0000-0000-000000000001', now());
INSERT INTO smart_search ("assetId") VALUES ('00000000-0000-0000-0000-000000000001'), ('00000000-0000-0000-0000-000000000003');
INSERT INTO system_config (key, value) VALUES
  ('machineLearning.clip.enabled', 'false'), ('oauth.clientSecret', '"secret"');
INSERT INTO users (id) VALUES (gen_random_uuid());
INSERT INTO migrations (id) SELECT generate_series(1, 117);
